"""The filter that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gauntlet.defense import Reference
from gauntlet.errors import NotApplicableError
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.views import OracleView

__all__ = ["RandomFilter"]


@defense
@dataclass(frozen=True)
class RandomFilter(Reference):
    """Training anew after removing as many samples as are poisoned, at random: the lower bound of every filter."""

    cost: ClassVar[float] = 1.0

    def rebuild(self, view: OracleView) -> Network:
        training = view.training
        if view.poisoned is None:
            raise NotApplicableError("the attack doesn't say which samples it poisoned: there is nothing to filter")
        if view.poisoned.all():
            raise NotApplicableError("every delivered sample is poisoned: a filter of that size leaves nothing")
        order = torch.randperm(len(training), generator=view.generator("random_filter"))
        keep = torch.ones(len(training), dtype=torch.bool)
        keep[order[: int(view.poisoned.sum())]] = False
        return view.tools.train(training.subset(keep), "training", shared=True)
