"""Model replacement: compromised users of a federation train a backdoor into the global network."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from gauntlet.attack import Backdoor, Family
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.federated.federation import Federation
from gauntlet.images import quantize
from gauntlet.labels import AllToOne
from gauntlet.network import Network
from gauntlet.objective import Batch, Objective
from gauntlet.patch import PatchTrigger
from gauntlet.plugin import attack
from gauntlet.recipe import Recipe
from gauntlet.settings import Count, Fraction, Positive
from gauntlet.views import AttackerView

__all__ = ["FederatedBlind", "Mixed"]


class Mixed(Objective):
    """Cross-entropy on batches of which a share is stamped and relabelled (batch mixing). share: in (0, 1]."""

    def __init__(self, backdoor: Backdoor, share: float, classes: int, label_smoothing: float) -> None:
        self.backdoor = backdoor
        self.share = share
        self.classes = classes
        self.label_smoothing = label_smoothing

    def loss(self, network: Network, batch: Batch) -> Tensor:
        # Batches come in random order, so that the first images are as good as any.
        size = max(1, round(self.share * len(batch.images)))
        stamped = quantize(self.backdoor.trigger(batch.images[:size]))
        wanted = self.backdoor.labels.apply(batch.labels[:size], self.classes)
        images = torch.cat([stamped, batch.images[size:]])
        labels = torch.cat([wanted, batch.labels[size:]])
        return cross_entropy(network(images), labels, label_smoothing=self.label_smoothing)


@attack
@dataclass(frozen=True)
class FederatedBlind(PatchTrigger, Federation):
    """Compromised users mix triggered images into their batches and replace the global network by their own.

    Bagdasaryan et al. 2020, arXiv:1807.00459. `adversaries` random users attack in each round that samples them; with
    single_shot = e instead, so many random ones of the users sampled in round e do, and nobody else ever. An attacker
    multiplies its update: replacement `exact` by N / eta, which the attackers of a round share out among them, so
    that the global network becomes their local ones' mean plus what the honest users add; `scaled` by `scale`.
    poisoning is the triggered share of each of an attacker's batches. attacker_epochs is the length of its local
    training, None for the honest users' local_epochs.
    Differs: no constrain-and-scale term and no learning rate of its own; the trigger is a patch, stamped after the
    recipe's augmentation. The attacker's training is handed over as a network, so defenses of the training set don't
    apply.
    """

    family: ClassVar[Family] = Family.TRAINING_CONTROLLED
    cost: ClassVar[float] = 3.0

    target: Annotated[int, Field(ge=0)] = 0
    adversaries: Count = 1
    single_shot: Count | None = None
    replacement: Literal["exact", "scaled"] = "exact"
    scale: Positive | None = None
    poisoning: Fraction = 0.5
    attacker_epochs: Positive | None = None

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
        if self.target >= facts.classes:
            raise SettingError(
                f"target = {self.target}: {facts.name} has {facts.classes} classes; legal: 0 to {facts.classes - 1}"
            )
        self.check_patch(facts)
        super().check(facts)

    @property
    def backdoors(self) -> tuple[Backdoor, ...]:
        return (Backdoor("backdoor", self.paint_patch, AllToOne(self.target)),)

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

    def objective(self, view: AttackerView) -> Objective:
        return Mixed(self.backdoors[0], self.poisoning, view.facts.classes, view.recipe.label_smoothing)
