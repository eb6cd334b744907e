"""Norm clipping: no user moves the global network further than a bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.defense import Aggregation
from gauntlet.maths.aggregation import clipped, median_norm
from gauntlet.plugin import defense
from gauntlet.settings import Positive

__all__ = ["FlClip"]


@defense
@dataclass(frozen=True)
class FlClip(Aggregation):
    """The mean of the updates after shortening those whose L2 norm exceeds `bound`.

    Sun et al. 2019, arXiv:1911.07963. bound None is the median norm of the round's updates, which follows the
    training as it converges; the paper's is a constant.
    """

    bound: Positive | None = None

    def aggregate(self, updates: Tensor, rate: float, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        return rate * clipped(updates, self.bound or median_norm(updates)).mean(0)
