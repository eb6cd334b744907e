"""The patch trigger as settings: what badnets, clean_label, adversarial_embedding and the controls share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.maths.paint import ART_PATTERN, Corner, art_pattern, checkerboard, paint
from gauntlet.settings import Count

__all__ = ["PatchTrigger"]


@dataclass(frozen=True)
class PatchTrigger:
    """A patch in a corner. pattern `art` is ART's four pixels (its side is fixed); `pixels` gives any other patch.

    pixels: rows of values in [0, 1]; a negative value is transparent. patch: the side of the white square or the
    checkerboard, in pixels. margin: pixels kept free at the image's edges.
    """

    patch: Count = 3
    pattern: Literal["white", "checkerboard", "art"] = "white"
    corner: Corner = "bottom right"
    margin: Annotated[int, Field(ge=0)] = 0
    pixels: tuple[tuple[Annotated[float, Field(le=1)], ...], ...] = ()

    def patch_size(self) -> tuple[int, int]:
        """Height and width of what is painted, without the margin."""
        if self.pixels:
            return len(self.pixels), max(len(row) for row in self.pixels)
        side = ART_PATTERN if self.pattern == "art" else self.patch
        return side, side

    def check_patch(self, facts: TaskFacts) -> None:
        """Raise SettingError when the patch doesn't fit into the task's images."""
        if len({len(row) for row in self.pixels}) > 1 or (self.pixels and not self.pixels[0]):
            raise SettingError("pixels: the rows differ in length; legal: rows of one length, from 1 value")
        _, height, width = facts.shape
        if self.patch_size()[0] + self.margin > height or self.patch_size()[1] + self.margin > width:
            rows, columns = self.patch_size()
            raise SettingError(
                f"patch {rows}x{columns} with margin {self.margin} doesn't fit into {facts.name}'s {height}x{width} "
                f"images; legal: patch + margin at most {min(height, width)}"
            )

    def paint_patch(self, images: Images) -> Images:
        """A copy of the images with the patch."""
        values, mask = self._drawing()
        return paint(images, values, mask, self.corner, self.margin)

    def _drawing(self) -> tuple[Tensor, Tensor | None]:
        if self.pixels:
            values = torch.tensor(self.pixels, dtype=torch.float32)
            return values.clamp(min=0), values >= 0
        if self.pattern == "art":
            return art_pattern()
        if self.pattern == "checkerboard":
            return checkerboard(self.patch), None
        return torch.ones(self.patch, self.patch), None
