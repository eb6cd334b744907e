"""A player's turn: whose it is, what torch's global generators give in it, and what may be handed back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
import xxhash
from torch import Tensor

from gauntlet import randomness
from gauntlet.assembly import mould
from gauntlet.errors import GauntletError, WrittenError
from gauntlet.guard import Role, acting_as
from gauntlet.images import Images, to_float
from gauntlet.network import Network
from gauntlet.toolbox import EngineTools, NetworkCodec, state_of
from gauntlet.views import Draws

__all__ = ["expected", "kept", "turn", "unwritten"]

T = TypeVar("T")

_COMPARED = 8
"""Images of the training set, and as many of the reserve, on which a network is compared with its weights."""
_CLOSE = 1e-3
"""The share of the logits that rounding may add: memory formats choose kernels."""


_Switch: TypeAlias = tuple[Callable[[], Any], Callable[[Any], object]]
"""How to ask for something that holds for the whole process, and how to set it."""


def _flag(owner: object, name: str) -> _Switch:
    return partial(getattr, owner, name), partial(setattr, owner, name)


_BACKENDS = (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn)
_OPERATIONS = [getattr(backend, name, None) for backend in _BACKENDS for name in ("matmul", "conv", "rnn")]
_PRECISIONS = [owner for owner in (torch.backends, *_BACKENDS, *_OPERATIONS) if hasattr(owner, "fp32_precision")]
"""From torch 2.9; what was set by them no longer answers to the two names of before, which therefore come after."""

_SWITCHES: tuple[_Switch, ...] = (
    *(_flag(owner, "fp32_precision") for owner in _PRECISIONS),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda _device: torch.set_default_device(None)),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    _flag(torch.backends.mkldnn, "enabled"),
    *(_flag(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
)


@contextmanager
def turn(role: Role, draws: Draws, *purpose: str) -> Iterator[None]:
    """Run the block on behalf of `role`; what it draws from torch's own generators is the same in every run.

    What it switches for the whole process is switched back, so that no player changes the results of another.
    """
    with _switches_kept(), draws.seeded(role, *purpose), acting_as(role):
        yield


@contextmanager
def _switches_kept() -> Iterator[None]:
    with np.errstate(), warnings.catch_warnings():
        before = [ask() for ask, _ in _SWITCHES]
        try:
            yield
        finally:
            for (ask, switch), value in zip(_SWITCHES, before, strict=True):
                if _asked(ask) != value:
                    switch(value)


def _asked(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except RuntimeError:  # torch: a precision was set by two names that contradict each other
        return None


@contextmanager
def unwritten(images: Tensor, complaint: str) -> Iterator[None]:
    """Raise WrittenError when the block changed the images, which the cases of a session share. complaint: who did."""
    before = _checksum(images)
    try:
        yield
    finally:
        if _checksum(images) != before:
            raise WrittenError(f"{complaint}, which every case shares: write into a copy, such as training.images()")


def _checksum(images: Tensor) -> bytes:
    return xxhash.xxh3_128(images.contiguous().numpy().data).digest()


def expected(value: object, kind: type[T], who: str, due: str = "") -> T:
    """The value; GauntletError, naming `who` gave it, when it is nothing of `kind`. due: what is, in words."""
    if not isinstance(value, kind):
        came = "None" if value is None else type(value).__name__
        raise GauntletError(f"{who} gave {came}; due: {due or kind.__name__}")
    return value


def kept(network: object, tools: EngineTools, who: str) -> Network:
    """What is left of a network that `who` handed back: its weights, in a new network of the case's architecture.

    GauntletError when they don't fit or are not finite, or when the network says something else than they do.
    """
    network = expected(network, Network, who)
    state = state_of(network)
    data, device = tools.data, tools.device
    due = mould(tools.architecture, data.facts, data.mean, data.std).state_dict()
    for name in {**due, **state}:
        came, asked = _kind(state.get(name)), _kind(due.get(name))
        if came != asked:
            raise GauntletError(
                f"{who} changed the network's structure: {name} is {came}, due is {asked}; only its weights are kept"
            )
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise GauntletError(f"{who} left weights that are not finite: {name}")
    restored = NetworkCodec(tools.architecture, data, device).restore(state)
    images = torch.cat([part.images(slice(_COMPARED)) for part in (data.training, data.reserve_pool)])
    said, says = (_logits(each, to_float(images.to(device)), tools.seed) for each in (network, restored))
    if said.shape != says.shape or bool((said - says).norm() > _CLOSE * says.norm()):
        raise GauntletError(f"{who} changed the network's structure; only its weights are kept")
    return restored


def _kind(value: Tensor | None) -> str:
    return "absent" if value is None else f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _logits(network: Network, images: Images, seed: int) -> Tensor:
    with torch.inference_mode(), randomness.seeded(seed, "comparison"):
        logits: Tensor = network.eval()(images.contiguous(memory_format=torch.channels_last))
    return logits.float().cpu()
