"""Weights that somebody handed over, put into a network whose form is known."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gauntlet.errors import DataError, ShapeError
from gauntlet.files import fault
from gauntlet.formats.keras_weights import keras_arrays, load_keras
from gauntlet.network import Network

__all__ = ["SUFFIXES", "load_weights", "odd_kind"]

SUFFIXES = (".h5", ".hdf5", ".safetensors", ".pt", ".pth")
"""Keras, safetensors, and what torch.save wrote of a state_dict."""

_LIMIT = 1 << 32
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "model.", "_orig_mod.", "network.")
_COUNTER = "num_batches_tracked"
_ZIP = b"PK"
# Of the others, torch can't even tell whether they are finite, or which of two values is less.
_TYPES = frozenset(
    {
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    }
)


@torch.no_grad()
def load_weights(network: Network, path: Path, shape: tuple[int, int, int]) -> bool:
    """Put the weights of a file into `network`, which takes images of `shape`; whether they bring its normalisation.

    A Keras file goes by layer names (`gauntlet.formats.keras_weights`). The tensors of the others are called as in
    the whole network (`body.conv_1.weight`, with `normalise.mean`) or as in the architecture's own module
    (`conv_1.weight`), behind a common prefix such as `module.`, perhaps inside a checkpoint's `state_dict`. Nothing is
    unpickled. DataError names the file and the first tensor that is missing, superfluous, of another shape or not
    finite.
    """
    if path.suffix.lower() in (".h5", ".hdf5"):
        load_keras(network.body, keras_arrays(path), shape, str(path))
        return False
    state = read_state(path)
    own = network.state_dict()
    named, normalised = _renamed(state, own, str(path))
    _check(named, own, str(path))
    for name, target in own.items():
        if name in named:
            target.copy_(named[name])
    return normalised


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state_dict or checkpoint that torch.save wrote, on the CPU."""
    if path.exists() and (why := fault(path)):
        raise DataError(f"{path}: {why}")
    try:
        size = path.stat().st_size
        if size > _LIMIT:
            raise DataError(f"{path} has {size:,} bytes; legal: at most {_LIMIT:,}")
        safe = path.suffix.lower() == ".safetensors"
        found: Any = load_file(path) if safe else _unpacked(path)
    except DataError:
        raise
    except Exception as error:  # the two libraries raise a dozen types for a damaged file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} can't be read as weights: {reason[0].partition('. ')[0]}") from error
    if isinstance(found, Mapping):
        found = next((found[name] for name in _WRAPPERS if isinstance(found.get(name), Mapping)), found)
    if not isinstance(found, Mapping) or not found:
        what = "tensors" if isinstance(found, Mapping) else "state_dict"
        raise DataError(f"{path} holds no {what}: give a file that maps parameter names to tensors")
    if odd := next((name for name, value in found.items() if not isinstance(value, Tensor)), None):
        raise DataError(f"{path}: {odd} is no tensor; give a file that maps parameter names to tensors")
    return {str(name): value for name, value in found.items()}


def _unpacked(path: Path) -> Any:
    """What torch.save wrote, as long as it is tensors in plain containers."""
    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols, and asks for bug reports, just before it refuses the file.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            start = file.read(2)
        if start != _ZIP and start[:1] != pickle.PROTO:
            raise DataError(f"{path} can't be read as weights: it is no file that torch.save wrote") from error
        raise DataError(
            f"{path} can't be read as weights: it holds Python objects other than tensors (a pickle), which is never "
            "loaded; save the model's state_dict"
        ) from error


def odd_kind(value: Tensor) -> str:
    """What a tensor is, in a few words, where it isn't plain real numbers with their values; '' where it is.

    A nested tensor has no shape to ask for, and one on the meta device no values: this must be asked first.
    """
    if value.is_nested:
        return f"{value.dtype}, nested"
    if value.is_meta:
        return f"{value.dtype}, without its values (on the meta device)"
    if value.layout is not torch.strided:
        return f"{value.dtype}, {value.layout}"
    return "" if value.dtype in _TYPES else str(value.dtype)


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], bool]:
    """The tensors by the names of the whole network, and whether its normalisation is among them."""
    named = dict(state)
    while named.keys().isdisjoint(own) and named.keys().isdisjoint(_bare(own)):
        prefix = next((one for one in _PREFIXES if all(name.startswith(one) for name in named)), None)
        if prefix is None:
            raise DataError(f"{where}: none of its tensors belongs to the network, as {min(named)}; due: {_due(own)}")
        named = {name.removeprefix(prefix): value for name, value in named.items()}
    if not named.keys().isdisjoint(own):
        return named, any(name.startswith("normalise.") for name in named)
    return {f"body.{name}": value for name, value in named.items()}, False


def _bare(own: Mapping[str, Tensor]) -> set[str]:
    return {name.removeprefix("body.") for name in own if name.startswith("body.")}


def _due(own: Mapping[str, Tensor]) -> str:
    names = sorted(_bare(own))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check(named: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    normalise = {name for name in own if name.startswith("normalise.")}
    optional = {name for name in own if name.endswith(_COUNTER)} | (normalise if normalise.isdisjoint(named) else set())
    if missing := sorted(own.keys() - named.keys() - optional):
        raise DataError(f"{where} has no {missing[0].removeprefix('body.')}, which the network needs")
    if superfluous := sorted(named.keys() - own.keys()):
        raise DataError(f"{where}: {superfluous[0].removeprefix('body.')} belongs to no layer of the network")
    # In the network's order: what the first layer says of its images explains what the last one says.
    for name, value in ((name, named[name]) for name in own if name in named):
        shown = name.removeprefix("body.")
        if kind := odd_kind(value):
            raise DataError(f"{where}: {shown} has the type {kind}; legal: plain real numbers")
        if value.shape != own[name].shape:
            raise ShapeError(
                f"{where}: {shown} has the shape {list(value.shape)}; due: {list(own[name].shape)}",
                shown.rpartition(".")[0],
                tuple(value.shape),
                tuple(own[name].shape),
            )
        if not torch.isfinite(value).all():
            raise DataError(f"{where}: {shown} holds NaN or infinite values")
        if name.endswith("running_var") and value.min() < 0:
            raise DataError(f"{where}: {shown} holds negative values, which no variance has")
    for name in normalise & named.keys():
        if name.endswith("std") and not (named[name] > 0).all():
            raise DataError(f"{where}: {name} holds values of 0 or below")
