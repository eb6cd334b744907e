"""The round loop of a federation: sample users, let them train, aggregate their updates, move the global network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from gauntlet.errors import DivergedError, GauntletError

__all__ = ["Aggregate", "Federated", "checked", "collect", "in_process", "moved"]

Aggregate: TypeAlias = Callable[[Tensor, float, int], Tensor]
"""updates float32 [n, D], the server's rate, and the number of the round, to the step of the global network [D].

Without a defense it is rate * mean(updates), where rate = eta * n / N (n of N users a round), which is
(eta / N) * sum(updates).
"""


@dataclass(frozen=True, eq=False)
class Federated:
    """What a round loop needs. start: float32 [D], the global network before round 1. rate: the server's.

    sample: a round's number to its users. update: the number, a user and the global network to that user's update,
    float32 [D]: local - global, whatever the user makes of it.
    """

    start: Tensor
    rounds: int
    rate: float
    sample: Callable[[int], Sequence[int]]
    update: Callable[[int, int, Tensor], Tensor]
    aggregate: Aggregate


def in_process(federated: Federated) -> Iterator[Tensor]:
    """The global network after each round, float32 [D]; the users of a round train one after the other."""
    state = federated.start
    for number in range(1, federated.rounds + 1):
        users = federated.sample(number)
        updates = torch.stack([federated.update(number, user, state) for user in users])
        state = moved(federated, number, state, updates)
        yield state


def moved(federated: Federated, number: int, state: Tensor, updates: Tensor) -> Tensor:
    """The global network after the server's step. DivergedError when a user's update is not finite."""
    if not updates.isfinite().all():
        raise DivergedError(f"round {number}: an update is not finite; lower the learning rate, the scale or the noise")
    return state + checked(federated.aggregate(updates, federated.rate, number), state)


def checked(step: Tensor, state: Tensor) -> Tensor:
    """Raise GauntletError for a step that is no finite vector of the network's length."""
    if step.shape != state.shape or not step.isfinite().all():
        found = f"{step.dtype} {list(step.shape)}, finite: {bool(step.isfinite().all())}"
        raise GauntletError(f"the aggregation gave {found}; due: a finite vector of {len(state)}")
    return step.to(state)


def collect(states: Iterator[Tensor], rounds: int, limit: int) -> tuple[Tensor, Tensor]:
    """Numbers int64 [R] and states float32 [R, D] on the CPU, of every k-th round and the last; k is the smallest with
    which they take at most `limit` bytes, one state at the least.
    """
    kept: list[tuple[int, Tensor]] = []
    for number, state in enumerate(states, start=1):
        every = max(1, -(-rounds * state.nbytes // max(limit, state.nbytes)))
        if number % every == 0 or number == rounds:
            kept.append((number, state.detach().cpu().clone()))
    return torch.tensor([number for number, _ in kept]), torch.stack([state for _, state in kept])
