"""The filter that makes no mistake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gauntlet.defense import Reference
from gauntlet.errors import NotApplicableError
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.views import OracleView

__all__ = ["PerfectFilter"]


@defense
@dataclass(frozen=True)
class PerfectFilter(Reference):
    """Training anew on the delivered set without its poisoned samples: the upper bound of every filter."""

    cost: ClassVar[float] = 1.0

    def rebuild(self, view: OracleView) -> Network:
        training = view.training
        if view.poisoned is None:
            raise NotApplicableError("the attack doesn't say which samples it poisoned: there is nothing to filter")
        if view.poisoned.all():
            raise NotApplicableError("every delivered sample is poisoned: a perfect filter leaves nothing to train on")
        return view.tools.train(training.subset(~view.poisoned), "training", shared=True)
