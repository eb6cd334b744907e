"""A drawn pattern at a fixed place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.synthesizers._base import Synthesizer

__all__ = ["CROSS", "Pattern", "Pixels", "check_pixels", "inside"]

Pixels = tuple[tuple[Annotated[float, Field(le=1)], ...], ...]
"""Rows of values in [0, 1]; a negative value is transparent."""

CROSS: Pixels = ((1.0, 0.0, 1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 0.0), (-1.0, 1.0, -1.0), (1.0, 0.0, 1.0))
"""The 5x3 pattern of Backdoors 101."""


def check_pixels(title: str, pixels: Pixels) -> tuple[int, int]:
    """Height and width; SettingError when the rows are no rectangle or show nothing."""
    if not pixels or not pixels[0] or len({len(row) for row in pixels}) > 1:
        raise SettingError(
            f"trigger {title}: pixels: the rows differ in length; legal: rows of one length, from 1 value"
        )
    if all(value < 0 for row in pixels for value in row):
        raise SettingError(f"trigger {title}: pixels: every cell is transparent; legal: at least one value from 0 to 1")
    return len(pixels), len(pixels[0])


def inside(title: str, facts: TaskFacts, place: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise SettingError when a rectangle of that size at (row, column) leaves the image."""
    for what, at, length, side in zip(("row", "column"), place, size, facts.shape[1:], strict=True):
        start = at + side if at < 0 else at
        if not 0 <= start <= side - length:
            shape = f"{facts.shape[1]}x{facts.shape[2]}"
            legal = f"0 to {side - length}" if length <= side else f"a trigger of at most {side}"
            raise SettingError(
                f"trigger {title}: {what} = {at} puts its {size[0]}x{size[1]} pixels outside {facts.name}'s {shape}; "
                f"legal: {legal}"
            )


@dataclass(frozen=True)
class Pattern(Synthesizer):
    """Rows of values with transparent cells, its upper left corner at (row, column), the same in every channel.

    Bagdasaryan & Shmatikov 2021, arXiv:2005.03823 (its code's pattern and place are the default: rows 3 to 7,
    columns 23 to 25). A negative row or column counts from the bottom or the right edge.
    """

    kind: Literal["pattern"] = "pattern"
    pixels: Pixels = CROSS
    row: int = 3
    column: int = 23

    def check(self, facts: TaskFacts) -> None:
        super().check(facts)
        inside(self.title, facts, (self.row, self.column), check_pixels(self.title, self.pixels))

    def paint(self, images: Images, chance: Tensor) -> Images:  # noqa: ARG002
        painted = images.clone()
        values = torch.tensor(self.pixels).to(images, non_blocking=True)
        row, column = self.row % images.shape[2], self.column % images.shape[3]
        area = painted[:, :, row : row + values.shape[0], column : column + values.shape[1]]
        area.copy_(torch.where(values >= 0, values, area))
        return painted
