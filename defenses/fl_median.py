"""The median of each coordinate in the place of the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.defense import Aggregation
from gauntlet.maths.aggregation import median
from gauntlet.plugin import defense

__all__ = ["FlMedian"]


@defense
@dataclass(frozen=True)
class FlMedian(Aggregation):
    """The coordinate-wise median of the updates. Yin et al. 2018, arXiv:1803.01498."""

    def aggregate(self, updates: Tensor, rate: float, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        return rate * median(updates)
