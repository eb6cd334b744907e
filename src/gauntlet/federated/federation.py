"""A federation as an attack: users, rounds and the server; shared by every federated attack."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.attack import Attack, Mounted
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.federated.flower import available, flower
from gauntlet.federated.rounds import Aggregate, Federated, collect, in_process
from gauntlet.federated.split import dirichlet_split, even_split
from gauntlet.federated.updates import Trajectory, flatten, load
from gauntlet.images import ImageSet
from gauntlet.network import Network
from gauntlet.objective import Objective
from gauntlet.recipe import Recipe
from gauntlet.settings import Count, Positive
from gauntlet.views import AttackerView

__all__ = ["Federation", "average"]

TRAJECTORY_BYTES = 256 << 20
"""What the snapshots of one federation may take in the store; beyond, every second, third... round is kept."""
_BACKENDS: dict[str, Callable[[Federated], Iterator[Tensor]]] = {"in_process": in_process, "flower": flower}


def average(updates: Tensor, rate: float, number: int) -> Tensor:  # noqa: ARG001
    """The server without a defense: (eta / N) * sum of the updates."""
    return rate * updates.mean(0)


@dataclass(frozen=True)
class Federation(Attack):
    """`users` N share the training data, evenly or skewed by `dirichlet` alpha, as in Backdoors 101.

    In each of `rounds`, `sampled` n users train the global network for local_epochs with the case's recipe (all of it
    but its length, early stopping and compilation) and send their update, local - global: parameters and the
    statistics of batch normalisation, not its counters. The server adds (eta / N) * sum of the updates. eta None is
    N / n, where that is their mean. backend `flower` has Flower's server drive the same users and aggregation
    (gauntlet.federated.flower). A user with fewer than two images sends an update of zeros.
    McMahan et al. 2017, arXiv:1602.05629; differs: updates are not weighted by the users' images.
    """

    delivers_data: ClassVar[bool] = False
    marks_poison: ClassVar[bool] = False

    users: Count = 100
    sampled: Count = 10
    rounds: Count = 10
    local_epochs: Positive = 2.0
    eta: Positive | None = None
    dirichlet: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    backend: Literal["in_process", "flower"] = "in_process"

    def __post_init__(self) -> None:
        if self.sampled > self.users:
            raise ValueError(f"sampled = {self.sampled} users a round of {self.users} users; legal: 1 to {self.users}")

    @property
    def rate(self) -> float:
        """What the server multiplies the updates' mean with: eta * n / N."""
        return 1.0 if self.eta is None else self.eta * self.sampled / self.users

    @property
    def replacement_scale(self) -> float:
        """N / eta: times this, one update alone makes the sum's share of it (eta / N) * (N / eta) = 1."""
        return self.sampled / self.rate

    def check(self, facts: TaskFacts) -> None:
        if self.users > facts.train_size:
            raise SettingError(
                f"users = {self.users:,}: {facts.name} has {facts.train_size:,} training images; legal: 1 to "
                f"{facts.train_size:,}"
            )
        if self.backend == "flower" and not available():
            raise SettingError("backend = 'flower' needs Flower; install 'backdoor-gauntlet[federated]'")

    def attackers(self, view: AttackerView, number: int, users: Collection[int]) -> frozenset[int]:  # noqa: ARG002
        """Those of the users sampled in round `number` that attack."""
        return frozenset()

    def training(self, view: AttackerView) -> tuple[ImageSet, Tensor]:
        """What the users share out among themselves, and int64 [n]: its positions in the attacker's training data."""
        return view.training, torch.arange(len(view.training))

    def objective(self, view: AttackerView, shard: ImageSet) -> Objective | None:  # noqa: ARG002
        """What an attacker minimises on its images `shard` instead of the users' cross-entropy."""
        return None

    def scale_of(self, attackers: int) -> float:  # noqa: ARG002
        """What each attacker multiplies its update with, in a round in which so many attack."""
        return 1.0

    def shards(self, view: AttackerView) -> list[ImageSet]:
        """Each user's part of the training data."""
        generator, (training, _) = view.generator("shards"), self.training(view)
        if self.dirichlet is None:
            places = even_split(len(training), self.users, generator)
        else:
            places = dirichlet_split(training.labels, self.users, self.dirichlet, generator)
        return [training.subset(part) for part in places]

    def sample(self, view: AttackerView, number: int) -> list[int]:
        """The users of a round by number, so that their order says nothing about them."""
        drawn = torch.randperm(self.users, generator=view.generator("sampled users", f"round {number}"))
        return sorted(drawn[: self.sampled].tolist())

    def local_recipe(self, view: AttackerView, *, attacks: bool) -> Recipe:  # noqa: ARG002
        """The recipe of a user who attacks, or doesn't."""
        return replace(view.recipe, epochs=self.local_epochs, validation_split=0.0, early_stopping=False, compile=False)

    def federate(self, view: AttackerView, aggregate: Aggregate) -> Mounted:
        """Run the federation with a server that aggregates so, and hand over the last global network."""
        network = view.tools.new_network()
        users = _Users(self, view, network, self.shards(view))
        federated = Federated(
            start=flatten(network),
            rounds=self.rounds,
            rate=self.rate,
            sample=lambda number: self.sample(view, number),
            update=users.update,
            aggregate=aggregate,
        )
        numbers, states = collect(_BACKENDS[self.backend](federated), self.rounds, TRAJECTORY_BYTES)
        load(network, states[-1].to(view.device))
        network.eval()
        training, sources = self.training(view)
        poisoned = torch.zeros(len(training), dtype=torch.bool)
        return Mounted(network, training, poisoned, sources, Trajectory(numbers, states))

    def mount(self, view: AttackerView) -> Mounted:
        return self.federate(view, average)


@dataclass(frozen=True, eq=False)
class _Users:
    """Every user of the federation; they train one after the other, in one network."""

    federation: Federation
    view: AttackerView
    network: Network
    shards: list[ImageSet]

    def update(self, number: int, user: int, state: Tensor) -> Tensor:
        """What a user sends in a round that began with the global network `state`."""
        shard = self.shards[user]
        if len(shard) < 2:
            return torch.zeros_like(state)
        attackers = self.federation.attackers(self.view, number, self.federation.sample(self.view, number))
        attacks = user in attackers
        load(self.network, state)
        self.view.tools.train(
            shard,
            "federated",
            f"round {number}",
            f"user {user}",
            recipe=self.federation.local_recipe(self.view, attacks=attacks),
            objective=self.federation.objective(self.view, shard) if attacks else None,
            network=self.network,
        )
        update = flatten(self.network) - state
        return update * self.federation.scale_of(len(attackers)) if attacks else update
