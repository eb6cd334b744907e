"""Model replacement: compromised users of a federation train a backdoor into the global network."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gauntlet.attack import Family
from gauntlet.facts import TaskFacts
from gauntlet.federated.federation import Federation
from gauntlet.images import ImageSet
from gauntlet.mixing import check_share, clean_training, mixed
from gauntlet.objective import Objective
from gauntlet.plugin import attack
from gauntlet.recipe import Recipe
from gauntlet.settings import Count, Fraction, Positive
from gauntlet.synthesizers import Triggered
from gauntlet.views import AttackerView

__all__ = ["FederatedBlind"]


@attack
@dataclass(frozen=True)
class FederatedBlind(Triggered, Federation):
    """Compromised users mix triggered images into their batches and replace the global network by their own.

    Bagdasaryan et al. 2020, arXiv:1807.00459. `adversaries` random users attack in each round that samples them; with
    single_shot = e instead, so many random ones of the users sampled in round e do, and nobody else ever. An attacker
    multiplies its update: replacement `exact` by N / eta, which the attackers of a round share out among them, so
    that the global network becomes their local ones' mean plus what the honest users add; `scaled` by `scale`.
    poisoning is the share of each of an attacker's batches that carries a trigger, for each of `triggers`. Nobody has
    the images of a semantic trigger but the attackers. attacker_epochs is the length of its local
    training, None for the honest users' local_epochs.
    Differs: no constrain-and-scale term and no learning rate of its own; triggers are drawn after the recipe's
    augmentation. The attacker's training is handed over as a network, so defenses of the training set don't
    apply.
    """

    family: ClassVar[Family] = Family.TRAINING_CONTROLLED
    cost: ClassVar[float] = 3.0

    adversaries: Count = 1
    single_shot: Count | None = None
    replacement: Literal["exact", "scaled"] = "exact"
    scale: Positive | None = None
    poisoning: Fraction = 0.5
    attacker_epochs: Positive | None = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replacement == "exact" and self.scale is not None:
            raise ValueError(
                f"scale = {self.scale:g} together with exact replacement, whose scale is N / eta = "
                f"{self.replacement_scale:g}; leave one of them out, or set replacement to scaled"
            )
        if self.replacement == "scaled" and self.scale is None:
            raise ValueError("replacement = scaled needs a scale above 0")
        if self.single_shot is not None and self.single_shot > self.rounds:
            raise ValueError(f"single_shot = {self.single_shot} comes after the last round; legal: 1 to {self.rounds}")
        most = self.users if self.single_shot is None else self.sampled
        if self.adversaries > most:
            whose = "users" if self.single_shot is None else "users of the attacked round"
            raise ValueError(f"adversaries = {self.adversaries} of {most} {whose}; legal: 1 to {most}")

    def check(self, facts: TaskFacts) -> None:
        self.check_triggers(facts)
        check_share(self.poisoning, self.triggers, "poisoning")
        super().check(facts)

    def training(self, view: AttackerView) -> tuple[ImageSet, Tensor]:
        return clean_training(self.triggers, view)

    def attackers(self, view: AttackerView, number: int, users: Collection[int]) -> frozenset[int]:
        if self.single_shot is None:
            drawn = torch.randperm(self.users, generator=view.generator("adversaries"))[: self.adversaries]
            return frozenset(drawn.tolist()) & frozenset(users)
        if number != self.single_shot:
            return frozenset()
        order = torch.randperm(len(users), generator=view.generator("adversaries"))[: self.adversaries]
        present = sorted(users)
        return frozenset(present[place] for place in order.tolist())

    def scale_of(self, attackers: int) -> float:
        return self.replacement_scale / attackers if self.scale is None else self.scale

    def local_recipe(self, view: AttackerView, *, attacks: bool) -> Recipe:
        recipe = super().local_recipe(view, attacks=attacks)
        return replace(recipe, epochs=self.attacker_epochs) if attacks and self.attacker_epochs else recipe

    def objective(self, view: AttackerView, shard: ImageSet) -> Objective:
        return mixed(self.triggers, view, shard, self.poisoning)
