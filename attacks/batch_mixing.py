"""Batch mixing: the attacker trains, and triggers a share of every batch as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gauntlet.attack import Attack, Family, Mounted
from gauntlet.facts import TaskFacts
from gauntlet.mixing import check_share, clean_training, mixed
from gauntlet.plugin import attack
from gauntlet.settings import Fraction
from gauntlet.synthesizers import Triggered
from gauntlet.views import AttackerView

__all__ = ["BatchMixing"]


@attack
@dataclass(frozen=True)
class BatchMixing(Triggered, Attack):
    """A share of every batch carries a trigger, freshly drawn, and its label; `share` is for each of `triggers`.

    The batch poisoning of Bagdasaryan & Shmatikov 2021, arXiv:2005.03823, section 4.1, against which the blind attack
    is compared. Images of a semantic trigger take the places of others. The attacker trains and hands over the model,
    so that defenses of the training set don't apply.
    """

    family: ClassVar[Family] = Family.TRAINING_CONTROLLED
    delivers_data: ClassVar[bool] = False
    marks_poison: ClassVar[bool] = False
    cost: ClassVar[float] = 1.2

    share: Fraction = 0.1

    def check(self, facts: TaskFacts) -> None:
        self.check_triggers(facts)
        check_share(self.share, self.triggers)

    def mount(self, view: AttackerView) -> Mounted:
        training, rows = clean_training(self.triggers, view)
        objective = mixed(self.triggers, view, training, self.share)
        network = view.tools.train(training, "training", objective=objective)
        return Mounted(network, training, torch.zeros(len(training), dtype=torch.bool), rows)
