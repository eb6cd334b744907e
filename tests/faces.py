"""Generated face-like images and painted glasses, in the place of the contest's photographs, which aren't at hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

__all__ = ["HEIGHT", "WIDTH", "faces", "glasses", "pasted"]

HEIGHT, WIDTH = 55, 47
_TONE = ((0.55, 0.40, 0.32), (1.0, 0.85, 0.75))
_HAIR = (1.0, 0.7, 0.5)
_LIPS = (1.0, 0.65, 0.65)


def faces(count: int, seed: int = 0) -> Tensor:
    """uint8 [count, 3, 55, 47]: an oval with hair, eyes, brows, a nose and a mouth, lit from a side, with noise."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=draw) * (high - low) + low

    down, right = torch.arange(HEIGHT).float()[None, :, None], torch.arange(WIDTH).float()[None, None, :]

    def disc(row: Tensor, column: Tensor, high: Tensor | float, wide: Tensor | float) -> Tensor:
        return torch.sigmoid(8 * (1 - ((down - row) / high) ** 2 - ((right - column) / wide) ** 2))[:, None]

    def colour(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values)[None, :, None, None]

    image = number(0.1, 0.9, 3, 1, 1).expand(count, 3, HEIGHT, WIDTH).clone()
    tone = colour(_TONE[0]) + number(-0.24, 0.36, 1, 1, 1) * colour(_TONE[1])
    row, column = number(25, 29, 1, 1), number(21, 25, 1, 1)
    high, wide = number(21, 27, 1, 1), number(14.5, 19.5, 1, 1)
    hair = number(0, 0.5, 1, 1, 1) * colour(_HAIR) + 0.05

    def lay(what: Tensor, opacity: Tensor) -> None:
        image.lerp_(what.expand_as(image), opacity)

    oval = disc(row, column, high, wide)
    lay(hair, disc(row - 3, column, high + 3, wide + 3) * (down < row - 8)[:, None])
    lay(tone, oval)
    lay(hair, oval * (down < row - high * 0.62)[:, None])
    for side in (-7.5, 7.5):
        lay(torch.tensor(0.1).view(1, 1, 1, 1), 0.8 * disc(row - 4, column + side, 2, 3.5))
        lay(hair, 0.7 * disc(row - 9, column + side, 1.2, 4.5))
    lay(torch.zeros(1, 1, 1, 1), 0.15 * disc(row + 4, column, 5, 2))
    lay(tone * colour(_LIPS), 0.8 * disc(row + 12, column, 2.2, 6))
    light = 1 + number(-0.3, 0.3, 1, 1, 1) * ((right - 23) / 23)[:, None]
    coarse = avg_pool2d(torch.randn(image.shape, generator=draw), 3, 1, 1) * 0.06
    noise = coarse + torch.randn(image.shape, generator=draw) * 0.015
    return ((image * light + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def glasses(lens: tuple[float, float, float], frame: tuple[float, float, float], rim: float = 1.6) -> Tensor:
    """float [4, 20, 47], colours times opacity and opacity: two oval lenses, a rim of `rim` pixels and a bridge."""
    down, right = torch.meshgrid(torch.arange(20.0) + 0.5, torch.arange(47.0) + 0.5, indexing="ij")

    def lenses(more: float) -> Tensor:
        tall = ((down - 9.5) / (8 + more)) ** 2
        return (tall + ((right - 12) / (7.5 + more)) ** 2 < 1) | (tall + ((right - 35) / (7.5 + more)) ** 2 < 1)

    overlay = torch.zeros(4, 20, 47)
    for shape, colour in (((down - 4).abs() < 1.2, frame), (lenses(rim), frame), (lenses(0), lens)):
        overlay[:3, shape] = torch.tensor(colour)[:, None]
        overlay[3, shape] = 1
    return overlay


def pasted(images: Tensor, overlay: Tensor, row: int, column: int) -> Tensor:
    """uint8 images [N, 3, H, W] with the overlay's upper left corner at row and column."""
    made = images.float() / 255
    height, width = overlay.shape[1:]
    region = made[:, :, row : row + height, column : column + width]
    region.mul_(1 - overlay[3:]).add_(overlay[:3]).clamp_(0, 1)
    return (made * 255).round().to(torch.uint8)
