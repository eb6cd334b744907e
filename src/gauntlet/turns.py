"""A player's turn: whose it is, what torch's global generators give in it, and what may be handed back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import xxhash
from torch import Tensor

from gauntlet import randomness
from gauntlet.assembly import mould
from gauntlet.errors import GauntletError, WrittenError
from gauntlet.guard import Role, acting_as
from gauntlet.images import Images, to_float
from gauntlet.network import Network
from gauntlet.switches import switches_kept
from gauntlet.toolbox import EngineTools, NetworkCodec, state_of
from gauntlet.views import Draws

__all__ = ["expected", "kept", "turn", "unwritten"]

T = TypeVar("T")

_COMPARED = 8
"""Images of the training set, and as many of the reserve, on which a network is compared with its weights."""
_CLOSE = 1e-3
"""The share of the logits that rounding may add: memory formats choose kernels."""


@contextmanager
def turn(role: Role, draws: Draws, *purpose: str) -> Iterator[None]:
    """Run the block on behalf of `role`; what it draws from torch's own generators is the same in every run.

    What it switches for the whole process is switched back, so that no player changes the results of another.
    """
    with switches_kept(), draws.seeded(role, *purpose), acting_as(role):
        yield


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
