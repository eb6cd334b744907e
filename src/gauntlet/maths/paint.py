"""Painting a patch on images."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from gauntlet.images import Images

__all__ = ["ART_PATTERN", "Corner", "art_pattern", "checkerboard", "paint"]

Corner: TypeAlias = Literal["top left", "top right", "bottom left", "bottom right", "all"]

ART_PATTERN = 4
"""Side of the square that holds ART's four-pixel pattern with its distance 2 from the edges."""


def checkerboard(side: int) -> Tensor:
    """float [side, side]: 1 where row + column is even, else 0."""
    steps = torch.arange(side)
    return ((steps[:, None] + steps) % 2 == 0).float()


def art_pattern() -> tuple[Tensor, Tensor]:
    """Values and mask [4, 4] of the pattern at distance 2: pixels (H-2, W-2), (H-3, W-3), (H-2, W-4), (H-4, W-2).

    Laid at the bottom right without a margin, the last row and column stay untouched, as in the NIST Dioptra demos.
    """
    mask = torch.zeros(ART_PATTERN, ART_PATTERN)
    for row, column in ((-2, -2), (-3, -3), (-2, -4), (-4, -2)):
        mask[row, column] = 1
    return mask.clone(), mask.bool()


def paint(
    images: Images, values: Tensor, mask: Tensor | None = None, corner: Corner = "bottom right", margin: int = 0
) -> Images:
    """A copy of `images` [N, C, H, W] with `values` [h, w] in [0, 1] laid into a corner of every channel.

    mask: bool [h, w], True where the patch is opaque (everywhere without one). margin: pixels kept free at the edges.
    `all` paints the four corners, each mirrored so that the patch faces the image's centre alike.
    """
    painted = images.clone()
    height, width = values.shape
    opaque = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    places = ("top left", "top right", "bottom left", "bottom right") if corner == "all" else (corner,)
    for place in places:
        vertical, horizontal = place.split()
        top = margin if vertical == "top" else images.shape[2] - margin - height
        left = margin if horizontal == "left" else images.shape[3] - margin - width
        flips = _mirror(corner, vertical, horizontal)
        patch = values.flip(flips).to(images, non_blocking=True)
        shown = opaque.flip(flips).to(images.device, non_blocking=True)
        area = painted[:, :, top : top + height, left : left + width]
        area.copy_(torch.where(shown, patch, area))
    return painted


def _mirror(corner: Corner, vertical: str, horizontal: str) -> list[int]:
    """The axes to flip so that a patch drawn for the bottom right faces the centre from another corner."""
    if corner != "all":
        return []
    return [axis for axis, flipped in ((0, vertical == "top"), (1, horizontal == "left")) if flipped]
