"""Multi-Krum: the mean of the updates that lie closest to their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.defense import Aggregation
from gauntlet.errors import SettingError
from gauntlet.maths.aggregation import most_tolerated, multi_krum
from gauntlet.plugin import defense
from gauntlet.settings import Count

__all__ = ["FlMultiKrum"]


@defense
@dataclass(frozen=True)
class FlMultiKrum(Aggregation):
    """The mean of the m updates with the smallest Krum scores.

    Blanchard et al. 2017, arXiv:1703.02757. assumed is f, the attackers a round that it is to withstand; None is the
    most that 2 f + 2 < n allows. chosen is m; None is n - f.
    """

    assumed: Annotated[int, Field(ge=0)] | None = None
    chosen: Count | None = None

    def check_updates(self, updates: int) -> None:
        most = most_tolerated(updates)
        if most < 0 or (self.assumed or 0) > most:
            legal = f"0 to {most}" if most >= 0 else "none, Krum takes 3 updates"
            raise SettingError(f"assumed = {self.assumed} attackers among {updates} updates a round; legal: {legal}")
        if self.chosen is not None and self.chosen > updates:
            raise SettingError(f"chosen = {self.chosen} of {updates} updates a round; legal: 1 to {updates}")

    def aggregate(self, updates: Tensor, rate: float, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        assumed = most_tolerated(len(updates)) if self.assumed is None else self.assumed
        return rate * multi_krum(updates, assumed, self.chosen or len(updates) - assumed)
