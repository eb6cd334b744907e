"""A network as one flat vector: what users send, what the server adds up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.errors import GauntletError
from gauntlet.network import Network

__all__ = ["Trajectory", "flatten", "load"]

_VARIANCE = "running_var"
"""torch's name for the one statistic of batch normalisation that can't be negative."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The global network after rounds of a federation. numbers: int64 [R], from 1, ascending. states: float32 [R, D] on
    the CPU, each as `flatten` gives it.
    """

    numbers: Tensor
    states: Tensor


def _entries(network: Network) -> list[tuple[str, Tensor]]:
    """Parameters and statistics of the body. The counters of batch normalisation are whole numbers that nobody could
    average, and the normalisation in front is the task's, not the users'.
    """
    return [(name, value) for name, value in network.body.state_dict().items() if value.is_floating_point()]


def flatten(network: Network) -> Tensor:
    """float32 [D] on the network's device, a copy: parameters and the statistics of batch normalisation."""
    return torch.cat([value.detach().reshape(-1).float() for _, value in _entries(network)])


def load(network: Network, state: Tensor) -> None:
    """Set the network to what `flatten` gave, in place; a variance below 0, which noise or a scaled update can leave
    behind, becomes 0. GauntletError when the length is another.
    """
    entries = _entries(network)
    due = sum(value.numel() for _, value in entries)
    if state.shape != (due,):
        raise GauntletError(f"a state of the shape {list(state.shape)} is no network of this form; due: [{due}]")
    with torch.no_grad():
        for (name, value), part in zip(
            entries, state.split_with_sizes([value.numel() for _, value in entries]), strict=True
        ):
            value.copy_(part.reshape(value.shape))
            if name.rpartition(".")[2] == _VARIANCE:
                value.clamp_(min=0)
