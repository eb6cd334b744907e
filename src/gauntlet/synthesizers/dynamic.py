"""A pattern whose size, side and place change from image to image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.maths.chance import whole
from gauntlet.settings import Count, Probability
from gauntlet.synthesizers._base import Synthesizer
from gauntlet.synthesizers.pattern import CROSS, Pixels, check_pixels

__all__ = ["Dynamic"]


@dataclass(frozen=True)
class Dynamic(Synthesizer):
    """A pattern resized to a smaller edge of `smallest` to `largest` pixels (nearest), mirrored or not, anywhere.

    Bagdasaryan & Shmatikov 2021, arXiv:2005.03823. Differs from its code, which draws once a batch and paints the
    transparent cells too: every image has a draw of its own, and transparent cells stay transparent.
    """

    chances: ClassVar[int] = 4

    kind: Literal["dynamic"] = "dynamic"
    pixels: Pixels = CROSS
    smallest: Count = 5
    largest: Count = 10
    flip: Probability = 0.5

    def check(self, facts: TaskFacts) -> None:
        super().check(facts)
        check_pixels(self.title, self.pixels)
        if self.smallest > self.largest:
            raise SettingError(
                f"trigger {self.title}: smallest = {self.smallest} above largest = {self.largest}; legal: at most that"
            )
        height, width = (int(side) for side in self._size(torch.tensor(self.largest)))
        if height > facts.shape[1] or width > facts.shape[2]:
            raise SettingError(
                f"trigger {self.title}: largest = {self.largest} makes it {height}x{width}, more than {facts.name}'s "
                f"{facts.shape[1]}x{facts.shape[2]} images; legal: less"
            )

    def paint(self, images: Images, chance: Tensor) -> Images:
        values = torch.tensor(self.pixels).to(images, non_blocking=True)
        heights, widths = self._size(whole(chance[:, 0], self.smallest, self.largest))
        tops = whole(chance[:, 2], 0, images.shape[2] - heights)
        lefts = whole(chance[:, 3], 0, images.shape[3] - widths)
        rows, in_rows = _cells(images.shape[2], tops, heights, values.shape[0], heights < 0)
        mirrored = chance[:, 1] < self.flip
        columns, in_columns = _cells(images.shape[3], lefts, widths, values.shape[1], mirrored)
        laid = values[rows[:, :, None], columns[:, None, :]]
        shown = in_rows[:, :, None] & in_columns[:, None, :] & (laid >= 0)
        return torch.where(shown[:, None], laid[:, None], images)

    def _size(self, edge: Tensor) -> tuple[Tensor, Tensor]:
        """Height and width when the smaller edge is `edge`."""
        height, width = len(self.pixels), len(self.pixels[0])
        least = min(height, width)
        return edge * height // least, edge * width // least


def _cells(side: int, starts: Tensor, sizes: Tensor, cells: int, mirrored: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [N, side]: the pattern's cell at each pixel of an edge, and bool: whether it is there at all."""
    offsets = torch.arange(side, device=starts.device) - starts[:, None]
    inside = (offsets >= 0) & (offsets < sizes[:, None])
    offsets = torch.where(mirrored[:, None], sizes[:, None] - 1 - offsets, offsets)
    return (offsets * cells // sizes[:, None]).clamp(0, cells - 1), inside
