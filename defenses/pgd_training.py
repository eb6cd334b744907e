"""PGD training: learns adversarial images in place of the delivered ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gauntlet.defense import InTraining
from gauntlet.maths.adversarial import Adversarial
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.settings import Count, Positive
from gauntlet.views import DefenderView

__all__ = ["PgdTraining"]


@defense
@dataclass(frozen=True)
class PgdTraining(InTraining):
    """Trains anew on L-inf PGD images alone, one random start each, by the case's recipe.

    Madry et al. 2018, arXiv:1706.06083; the settings of the NIST Dioptra demos. Their 7 steps of 0.001 move 0.007
    within a ball of 0.15, so that the random start does most of the work; step = 0.04 is Madry's proportion.
    """

    cost: ClassVar[float] = 6.0

    eps: Positive = 0.15
    step: Positive = 0.001
    iterations: Count = 7

    def train(self, view: DefenderView) -> Network:
        objective = Adversarial(norm="inf", eps=self.eps, step=self.step, iterations=self.iterations)
        return view.tools.train(view.training, "training", objective=objective, shared=True)
