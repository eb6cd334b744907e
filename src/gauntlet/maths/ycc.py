"""JPEG's colours as libjpeg computes them: RGB to YCbCr and back, chroma halved and doubled."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["double", "halve", "to_rgb", "to_ycc"]

_TO_YCC = [
    [19595, 38470, 7471, 1 << 15],
    [-11059, -21709, 32768, (1 << 23) + (1 << 15) - 1],
    [32768, -27439, -5329, (1 << 23) + (1 << 15) - 1],
]
_TO_RGB = [
    [65536, 0, 91881, (1 << 15) - 128 * 91881],
    [65536, -22554, -46802, (1 << 15) + 128 * (22554 + 46802)],
    [65536, 116130, 0, (1 << 15) - 128 * 116130],
]
"""ITU-R BT.601 at full range (JFIF) in units of 2^-16; the last column moves chroma by 128 and rounds."""


def to_ycc(images: Tensor) -> Tensor:
    """uint8 RGB [N, 3, H, W] to uint8 YCbCr [3, N, H, W]."""
    return _mixed(images.transpose(0, 1), _TO_YCC)


def to_rgb(planes: Tensor) -> Tensor:
    """uint8 YCbCr [3, N, H, W] to uint8 RGB [N, 3, H, W], clipped."""
    return _mixed(planes, _TO_RGB).transpose(0, 1)


def _mixed(planes: Tensor, table: list[list[int]]) -> Tensor:
    # float64, because these sums need 25 bits and a float32 product may be taken in fewer.
    values = planes.new_empty(4, *planes.shape[1:], dtype=torch.float64)
    values[:3] = planes
    values[3] = 1
    mixed = values.new_tensor(table).div_(1 << 16) @ values.flatten(1)
    return mixed.clamp_(0, 255).to(torch.uint8).view(planes.shape)


def halve(planes: Tensor, multiple: int) -> Tensor:
    """uint8 [..., H, W] to [..., ceil(H/2), W'] by means of 2x2, which round down and up in turns along a row.

    The last row and column are repeated where one is missing, and columns on to make W' a multiple of `multiple`.
    """
    height, width = planes.shape[-2:]
    rows, columns = -(-height // 2) * 2, -(-width // (2 * multiple)) * 2 * multiple
    if (rows, columns) != (height, width):
        planes = planes[..., _clamped(rows, height, planes), :][..., _clamped(columns, width, planes)]
    pairs = planes.to(torch.int16)
    pairs = pairs[..., 0::2, :] + pairs[..., 1::2, :]
    bias = 1 + torch.arange(columns // 2, dtype=torch.int16, device=planes.device) % 2
    return (pairs[..., 0::2] + pairs[..., 1::2]).add_(bias).bitwise_right_shift_(2).to(torch.uint8)


def double(planes: Tensor) -> Tensor:
    """uint8 [P, h, w] to [P, 2h, 2w]: each new value is 9/16, 3/16, 3/16 and 1/16 of the four nearest.

    libjpeg's "fancy" upsampling, which rounds 1/2 up in even columns and down in odd ones; the edge stands for what is
    beyond it. Planes of up to 2 columns are repeated instead, as libjpeg does.
    """
    count, height, width = planes.shape
    if width <= 2:
        return planes.repeat_interleave(2, 1).repeat_interleave(2, 2)
    values = planes.new_empty(count, height + 2, width + 2, dtype=torch.int16)
    values[:, 1:-1, 1:-1] = planes
    values[:, 1:-1, 0], values[:, 1:-1, -1] = planes[:, :, 0], planes[:, :, -1]
    values[:, 0], values[:, -1] = values[:, 1], values[:, -2]
    nearest = values[:, 1:-1] * 3
    sums = torch.stack([nearest + values[:, :-2], nearest + values[:, 2:]], 2)
    nearest = sums[..., 1:-1] * 3
    even, odd = (nearest + sums[..., :-2]).add_(8), (nearest + sums[..., 2:]).add_(7)
    return torch.stack([even, odd], -1).bitwise_right_shift_(4).to(torch.uint8).view(count, 2 * height, 2 * width)


def _clamped(count: int, size: int, like: Tensor) -> Tensor:
    """`count` positions, held within an axis of `size`."""
    return torch.arange(count, device=like.device).clamp_(max=size - 1)
