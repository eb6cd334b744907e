"""FLAME: the majority's direction, the median's length, and noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.defense import Aggregation
from gauntlet.maths.aggregation import flame, noisy
from gauntlet.plugin import defense
from gauntlet.settings import NonNegative

__all__ = ["FlFlame"]


@defense
@dataclass(frozen=True)
class FlFlame(Aggregation):
    """HDBSCAN on cosine distances admits the majority, which is clipped to the median norm S; noise N(0, (noise S)^2).

    Nguyen et al. 2022, arXiv:2101.02281, with its noise factor for images, 0.001. Differs: the distances are between
    updates; the server's rate scales the step, not the noise.
    """

    noise: NonNegative = 0.001

    def aggregate(self, updates: Tensor, rate: float, generator: torch.Generator) -> Tensor:
        mean, bound = flame(updates)
        return noisy(rate * mean, self.noise * bound, generator)
