"""The mean of each coordinate without its extremes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.defense import Aggregation
from gauntlet.errors import SettingError
from gauntlet.maths.aggregation import trimmed_mean
from gauntlet.plugin import defense

__all__ = ["FlTrimmedMean"]


@defense
@dataclass(frozen=True)
class FlTrimmedMean(Aggregation):
    """The coordinate-wise mean without the share `trim` of the values at either end. Yin et al. 2018, arXiv:1803.01498.

    A share of the round's updates, rounded down; below one update nothing would be trimmed, which is refused.
    """

    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.2

    def check_updates(self, updates: int) -> None:
        if not self._cut(updates):
            legal = f"from {1 / updates:.3g} to below 0.5" if updates > 2 else "none, it takes 3 updates"
            raise SettingError(f"trim = {self.trim:g} of {updates} updates a round is none; legal: {legal}")

    def aggregate(self, updates: Tensor, rate: float, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        return rate * trimmed_mean(updates, self._cut(len(updates)))

    def _cut(self, updates: int) -> int:
        # 0.2 of 10 is 2, whatever floating point makes of it.
        return int(round(self.trim * updates, 9))
