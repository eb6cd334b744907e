"""Weak differential privacy: norm clipping and Gaussian noise on the global network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.defense import Aggregation
from gauntlet.maths.aggregation import clipped, median_norm, noisy
from gauntlet.plugin import defense
from gauntlet.settings import NonNegative, Positive

__all__ = ["FlDp"]


@defense
@dataclass(frozen=True)
class FlDp(Aggregation):
    """The mean of the clipped updates, and noise N(0, noise^2) on every value of the global network.

    Sun et al. 2019, arXiv:1911.07963; noise is the standard deviation of what is added in each round (fl_dp_noise of
    Backdoors 101). bound None is the median norm of the round's updates. "Weak": the noise is far below what a
    meaningful epsilon asks for.
    """

    bound: Positive | None = None
    noise: NonNegative = 0.001

    def aggregate(self, updates: Tensor, rate: float, generator: torch.Generator) -> Tensor:
        step = rate * clipped(updates, self.bound or median_norm(updates)).mean(0)
        return noisy(step, self.noise, generator)
