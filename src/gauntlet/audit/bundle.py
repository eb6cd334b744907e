"""What an audit hands back: a model, or a pair of models that flags what they disagree on, in a folder of its own."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gauntlet.architecture import Architecture
from gauntlet.assembly import assemble, mould, wrap
from gauntlet.audit.answers import check_answers
from gauntlet.audit.parts import model_reader
from gauntlet.errors import DataError
from gauntlet.facts import TaskFacts
from gauntlet.files import fault
from gauntlet.formats.states import odd_kind
from gauntlet.images import to_float
from gauntlet.network import Network
from gauntlet.plugin import Kind, name_of
from gauntlet.registry import Registry
from gauntlet.settings import changed
from gauntlet.toolbox import state_of

__all__ = ["Bundle", "open_bundle", "open_file", "save_bundle"]

_FORM = "bundle.json"
_LIMIT = 1 << 31
_FORM_LIMIT = 1 << 24
_Side = Annotated[int, Field(ge=1, le=1 << 14)]


class _Form(BaseModel):
    """bundle.json. networks: the files of weights; the first one is the model as it was handed over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gauntlet: int = Field(ge=1, le=1)
    model: str
    settings: dict[str, Any]
    shape: tuple[_Side, _Side, _Side]
    class_names: tuple[str, ...] = Field(min_length=2)
    networks: tuple[str, ...] = Field(min_length=1, max_length=2)


@dataclass(frozen=True, eq=False)
class Bundle:
    """One network, or two: the handed-over one and its repair, which flag the images that they disagree on."""

    networks: tuple[Network, ...]
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        """N: the class that stands for a poisoned input."""
        return len(self.class_names)

    def predict(self, images: Tensor) -> Tensor:
        """int64 [n] of uint8 [n, C, H, W]: a class in [0, N); N where the networks disagree. DataError for an answer
        that is no number.
        """
        shown = to_float(images).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            logits = [network.eval()(shown) for network in self.networks]
        for each in logits:
            check_answers(each)
        answers = [each.argmax(1) for each in logits]
        agreed = torch.stack([answer == answers[0] for answer in answers]).all(0)
        flagged: Tensor = answers[-1].masked_fill(~agreed, self.classes)
        return flagged


def save_bundle(
    folder: Path, architecture: Architecture, facts: TaskFacts, networks: tuple[Network, ...]
) -> list[Path]:
    """Write a folder that needs no other file: everything into a hidden one first, then renamed. DataError when it
    can't be written. The paths of its files.
    """
    names = ("handed_over.safetensors", "repaired.safetensors")[-len(networks) :]
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        _remove(temporary)
        temporary.mkdir(parents=True)
        portable = architecture.portable(temporary)
        for name, network in zip(names, networks, strict=True):
            save_file({key: value.contiguous() for key, value in state_of(network).items()}, temporary / name)
        form = _Form(
            gauntlet=1,
            model=name_of(architecture),
            settings=_relative(changed(portable), temporary),
            shape=facts.shape,
            class_names=facts.class_names,
            networks=names,
        )
        (temporary / _FORM).write_text(form.model_dump_json(indent=1), encoding="utf-8")
        _remove(folder)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            _remove(temporary)
        raise DataError(f"the bundle {folder} can't be written: {error}; choose another folder") from error
    return sorted(folder.iterdir())


def open_bundle(folder: Path, registry: Registry) -> Bundle:
    """The networks of a folder that `save_bundle` wrote, which may come from anybody; DataError says what is wrong."""
    try:
        form = _Form.model_validate(json.loads(_text(folder / _FORM)))
    except (ValidationError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / _FORM} is no bundle's description: {_first(error)}") from None
    settings = _absolute(form.settings, folder)
    _check_paths(settings, folder)
    architecture: Architecture = registry.build(Kind.MODEL, form.model, settings)
    facts = _facts(form)
    architecture.check(facts)
    channels = form.shape[0]
    frame = mould(architecture, facts, (0.0,) * channels, (1.0,) * channels)
    networks = tuple(_network(frame, folder, name) for name in form.networks)
    return Bundle(networks, form.shape, form.class_names)


def open_file(path: Path, input_range: str, registry: Registry) -> Bundle:
    """The model of a file that describes itself, alone; GauntletError for one that doesn't, or not its images' size."""
    name = model_reader(registry, path)
    if name is None:
        raise DataError(f"{path} is no model that describes itself; audit it, and give the bundle that this exports")
    settings = {"path": str(path)} | ({} if input_range == "0..1" else {"input_range": input_range})
    architecture: Architecture = registry.build(Kind.MODEL, name, settings)
    declared = architecture.declared()
    if declared is None:
        raise DataError(f"{path} takes images of any size; audit it, and give the bundle that this exports")
    (channels, height, width), classes = declared
    names = tuple(map(str, range(classes)))
    form = _Form(
        gauntlet=1, model=name, settings={}, shape=(channels, height, width), class_names=names, networks=("",)
    )
    network = wrap(architecture, _facts(form), (0.0,) * channels, (1.0,) * channels)
    return Bundle((network.eval().place(torch.device("cpu")),), form.shape, names)


def _network(form: Network, folder: Path, name: str) -> Network:
    path = folder / name
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise DataError(f"{folder / _FORM}: {name!r} is no file of weights beside it; legal: NAME.safetensors")
    if why := fault(path):
        raise DataError(f"{path} can't be read as safetensors: {why}")
    try:
        if path.stat().st_size > _LIMIT:
            raise DataError(f"{path} has more than {_LIMIT >> 30} GiB")
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} can't be read as safetensors: {error}") from None
    if odd := next(((key, kind) for key, value in state.items() if (kind := odd_kind(value))), None):
        raise DataError(f"{path}: the tensor {odd[0]} has the type {odd[1]}; legal: plain real numbers")
    if bad := next((key for key, value in state.items() if not value.isfinite().all()), ""):
        raise DataError(f"{path}: the tensor {bad} holds values that are not finite")
    try:
        return assemble(form, state).place(torch.device("cpu"))
    except RuntimeError:
        raise DataError(f"{path}: these are not the weights of the model that {_FORM} describes") from None


def _facts(form: _Form) -> TaskFacts:
    nothing = (0,) * len(form.class_names)
    return TaskFacts("bundle", form.shape, form.class_names, nothing, nothing, nothing, "", "")


def _text(path: Path) -> str:
    why = fault(path.parent, folder=True)
    if not why and (of_file := fault(path)):
        why = f"{path.name}: {of_file}"
    if why:
        raise DataError(f"{path.parent} is no bundle: {why}")
    try:
        if path.stat().st_size > _FORM_LIMIT:
            raise DataError(f"{path} has more than {_FORM_LIMIT >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(str(error).split())


def _relative(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths into the folder as names, so that it can be moved."""
    prefix = f"{folder}/"
    return {
        name: f"./{value.removeprefix(prefix)}" if isinstance(value, str) and value.startswith(prefix) else value
        for name, value in settings.items()
    }


def _absolute(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        name: str(folder / Path(value).name) if isinstance(value, str) and value.startswith("./") else value
        for name, value in settings.items()
    }


def _check_paths(settings: dict[str, Any], folder: Path) -> None:
    """Raise DataError for a setting that leads to a pipe or a device: the architecture would open it."""
    for name, value in settings.items():
        if isinstance(value, str) and os.path.lexists(value) and (why := fault(Path(value), folder=True)):
            raise DataError(f"{folder / _FORM}: the setting {name}: {value}: {why}")


def _remove(folder: Path) -> None:
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
