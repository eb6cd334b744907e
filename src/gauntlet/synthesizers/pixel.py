"""One pixel at a fixed place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.settings import Probability
from gauntlet.synthesizers._base import Synthesizer
from gauntlet.synthesizers.pattern import inside

__all__ = ["Pixel"]


@dataclass(frozen=True)
class Pixel(Synthesizer):
    """One pixel of one value in every channel; a negative row or column counts from the far edge.

    Bagdasaryan & Shmatikov 2021, arXiv:2005.03823 (its code's place is the default).
    """

    kind: Literal["pixel"] = "pixel"
    row: int = 3
    column: int = 23
    value: Probability = 1.0

    def check(self, facts: TaskFacts) -> None:
        super().check(facts)
        inside(self.title, facts, (self.row, self.column), (1, 1))

    def paint(self, images: Images, chance: Tensor) -> Images:  # noqa: ARG002
        painted = images.clone()
        painted[:, :, self.row, self.column] = self.value
        return painted
