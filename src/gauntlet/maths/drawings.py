"""Small pictures of objects, drawn by formula, with transparency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["DRAWINGS", "eyebrows", "fitted", "lips", "sticker", "sunglasses"]

_FINE = 8
"""Points a pixel and edge that a drawing is made of."""


def fitted(overlay: Tensor, width: int) -> Tensor:
    """[4, H, W], colours times opacity, resized to a width in pixels, in proportion."""
    height = max(1, round(overlay.shape[1] * width / overlay.shape[2]))
    small = interpolate(overlay[None], (height, width), mode="bilinear", antialias=True, align_corners=False)
    return small[0].clamp(0, 1)


def sunglasses() -> Tensor:
    """Dark lenses with a glare each, a bridge and two temples; 47 wide and 20 high, as the contest's picture."""
    down, right = _points(20, 47)
    canvas = torch.zeros(4, *down.shape)
    lenses = _ellipse(down, right, (10, 12.5), (8.5, 10.5)) | _ellipse(down, right, (10, 34.5), (8.5, 10.5))
    bar = _box(down, right, (3.5, 0.5), (6, 46.5))
    _lay(canvas, lenses, (0.05, 0.05, 0.07), 0.95)
    _lay(canvas, bar, (0.02, 0.02, 0.02), 1.0)
    for centre in (9.0, 31.0):
        glare = (right - centre - (12 - down) * 0.7).abs() < 1.2
        _lay(canvas, glare & lenses & (down > 5) & (down < 13), (0.9, 0.9, 0.95), 0.9)
    return canvas


def sticker() -> Tensor:
    """A yellow face that smiles; 16 by 16."""
    down, right = _points(16, 16)
    canvas = torch.zeros(4, *down.shape)
    _lay(canvas, _ellipse(down, right, (8, 8), (8, 8)), (1.0, 0.85, 0.1), 1.0)
    eyes = _ellipse(down, right, (5.5, 5), (1.6, 1.2)) | _ellipse(down, right, (5.5, 11), (1.6, 1.2))
    ring = _ellipse(down, right, (8, 8), (5.2, 5.2)) & ~_ellipse(down, right, (8, 8), (3.8, 3.8)) & (down > 9)
    _lay(canvas, eyes | ring, (0.1, 0.08, 0.02), 1.0)
    return canvas


def lips() -> Tensor:
    """Purple lips, (128, 0, 128); 20 wide and 8 high."""
    down, right = _points(8, 20)
    canvas = torch.zeros(4, *down.shape)
    upper = _ellipse(down, right, (4, 6.5), (3.2, 6)) | _ellipse(down, right, (4, 13.5), (3.2, 6))
    lower = _ellipse(down, right, (4, 10), (3.8, 9))
    _lay(canvas, (upper & (down < 4)) | (lower & (down >= 4)), (128 / 255, 0.0, 128 / 255), 1.0)
    return canvas


def eyebrows() -> Tensor:
    """Two red eyebrows, (108, 9, 8); 40 wide and 8 high."""
    down, right = _points(8, 40)
    canvas = torch.zeros(4, *down.shape)
    for centre in (9.0, 31.0):
        arc = _ellipse(down, right, (8, centre), (7, 8.5)) & ~_ellipse(down, right, (8.5, centre), (4, 7))
        _lay(canvas, arc & (down < 7), (108 / 255, 9 / 255, 8 / 255), 1.0)
    return canvas


DRAWINGS: Mapping[str, Callable[[], Tensor]] = MappingProxyType(
    {"sunglasses": sunglasses, "sticker": sticker, "lips": lips, "eyebrows": eyebrows}
)
"""float32 [4, H, W] each: red, green and blue times opacity, and opacity."""


def _points(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The coordinates of fine points, in pixels: [H, 1] down and [1, W] right, broadcast."""
    down = (torch.arange(height * _FINE) + 0.5) / _FINE
    right = (torch.arange(width * _FINE) + 0.5) / _FINE
    return down[:, None].expand(-1, len(right)), right[None, :].expand(len(down), -1)


def _ellipse(down: Tensor, right: Tensor, centre: tuple[float, float], radii: tuple[float, float]) -> Tensor:
    return ((down - centre[0]) / radii[0]) ** 2 + ((right - centre[1]) / radii[1]) ** 2 <= 1


def _box(down: Tensor, right: Tensor, start: tuple[float, float], stop: tuple[float, float]) -> Tensor:
    return (down >= start[0]) & (down < stop[0]) & (right >= start[1]) & (right < stop[1])


def _lay(canvas: Tensor, where: Tensor, colour: tuple[float, float, float], opacity: float) -> None:
    """Lay a colour over the canvas, in place."""
    ink = torch.tensor([*colour, 1.0]).view(4, 1, 1) * opacity
    canvas.copy_(torch.where(where, ink + canvas * (1 - opacity), canvas))
