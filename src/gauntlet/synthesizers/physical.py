"""The picture of a real object, laid over the image as a camera might have met it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import grid_sample

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.formats.pictures import read_overlay
from gauntlet.images import Images
from gauntlet.maths.chance import uniform
from gauntlet.maths.drawings import DRAWINGS, fitted
from gauntlet.settings import Fraction, Probability
from gauntlet.synthesizers._base import Synthesizer

__all__ = ["Physical"]

Factor = Annotated[float, Field(gt=0, le=4)]
Degrees = Annotated[float, Field(ge=-180, le=180)]


@dataclass(frozen=True)
class Physical(Synthesizer):
    """A picture with transparency; size, angle, place and brightness change from image to image.

    Wenger et al. 2021, arXiv:2006.14580 (physical triggers), drawn in as Bagdasaryan & Shmatikov 2021,
    arXiv:2005.03823, only announce. picture: one of ours. file: a PNG of your own with transparency, in its place.
    row, column: the picture's centre, as shares of the image's height and width; width: its width, as a share. shift:
    how far the centre moves each way, as shares. scale, rotation (degrees) and brightness (a factor of the colours):
    the ranges that each image draws from. A range of two equal numbers fixes it.
    """

    chances: ClassVar[int] = 5

    kind: Literal["physical"] = "physical"
    picture: Literal["sunglasses", "sticker", "lips", "eyebrows"] = "sunglasses"
    file: Path | None = None
    row: Probability = 0.45
    column: Probability = 0.5
    width: Fraction = 0.8
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    scale: tuple[Factor, Factor] = (0.9, 1.1)
    rotation: tuple[Degrees, Degrees] = (-10.0, 10.0)
    brightness: tuple[Factor, Factor] = (0.8, 1.2)

    def own_name(self) -> str:
        return self.picture if self.file is None else self.file.stem

    def check(self, facts: TaskFacts) -> None:
        super().check(facts)
        for name, (low, high) in (
            ("scale", self.scale),
            ("rotation", self.rotation),
            ("brightness", self.brightness),
        ):
            if low > high:
                raise SettingError(f"trigger {self.title}: {name} = [{low:g}, {high:g}]; legal: the smaller one first")
        height, width = self._overlay(facts.shape[2]).shape[1:]
        # Turned a little it may be cut at the edge, as real things are, but most of it must be seen.
        room = [abs(share * side) for share, side in ((self.row, facts.shape[1]), (self.column, facts.shape[2]))]
        for what, centre, size, side in zip(("row", "column"), room, (height, width), facts.shape[1:], strict=True):
            if centre - size / 2 < -0.5 or centre + size / 2 > side + 0.5:
                raise SettingError(
                    f"trigger {self.title}: {what} = {centre / side:g} puts its {height}x{width} pixels outside "
                    f"{facts.name}'s {facts.shape[1]}x{facts.shape[2]}; legal: {size / 2 / side:.3g} to "
                    f"{1 - size / 2 / side:.3g}, or a smaller width"
                )

    def paint(self, images: Images, chance: Tensor) -> Images:
        overlay = self._overlay(images.shape[3]).to(images)
        grid = self._grid(images.shape[2], images.shape[3], overlay.shape[1:], chance[:, :4]).to(images.dtype)
        laid = grid_sample(overlay.expand(len(images), -1, -1, -1), grid, align_corners=False)
        light = uniform(chance[:, 4], *self.brightness).to(images.dtype).view(-1, 1, 1, 1)
        opaque = laid[:, 3:]
        colours = _in_channels(laid[:, :3], images.shape[1]) * light
        return (images * (1 - opaque) + torch.minimum(colours, opaque)).clamp(0, 1)

    def _overlay(self, side: int) -> Tensor:
        """float32 [4, h, w], colours times opacity, at the size that it has in an image `side` pixels wide."""
        width = max(1, round(self.width * side))
        return _drawn(self.picture, width) if self.file is None else fitted(read_overlay(self.file), width)

    def _grid(self, height: int, width: int, size: torch.Size, chance: Tensor) -> Tensor:
        """float64 [N, height, width, 2]: where in the overlay, from -1 to 1, each pixel of the image looks."""
        scale = uniform(chance[:, 0], *self.scale)
        angle = uniform(chance[:, 1], *self.rotation) * (math.pi / 180)
        rows = (self.row + uniform(chance[:, 2], -self.shift, self.shift)) * height
        columns = (self.column + uniform(chance[:, 3], -self.shift, self.shift)) * width
        down = torch.arange(height, device=chance.device)[None, :, None] + 0.5 - rows[:, None, None]
        right = torch.arange(width, device=chance.device)[None, None, :] + 0.5 - columns[:, None, None]
        cosine = (angle.cos() / scale)[:, None, None]
        sine = (angle.sin() / scale)[:, None, None]
        across = (cosine * right + sine * down) * (2 / size[1])
        along = (cosine * down - sine * right) * (2 / size[0])
        return torch.stack([across, along], dim=-1)


@lru_cache(maxsize=64)
def _drawn(picture: str, width: int) -> Tensor:
    return fitted(DRAWINGS[picture](), width)


def _in_channels(colours: Tensor, channels: int) -> Tensor:
    """[N, 3, H, W] as it is, or as brightness in another number of channels."""
    if channels == 3:
        return colours
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=colours.dtype, device=colours.device).view(1, 3, 1, 1)
    return (colours * weights).sum(1, keepdim=True)
