"""A JPEG round trip as libjpeg computes it, on tensors: only the lossless entropy coding is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gauntlet.images import Images, chunks, to_uint8
from gauntlet.maths.dct import BLOCK, BlockCoder
from gauntlet.maths.ycc import double, halve, to_rgb, to_ycc

__all__ = ["jpeg_levels", "jpeg_round_trip"]

_CACHED = 1 << 18
"""Values at a time on a CPU: what its caches hold with all that is made of them."""
_LAUNCHED = 1 << 24
"""The same on an accelerator, where a step must be worth its launch."""

_LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMINANCE = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    *[[99] * 8] * 4,
]
"""ITU-T T.81, tables K.1 and K.2."""


def jpeg_round_trip(images: Tensor, quality: int) -> Images:
    """Every image compressed to JPEG and read back: what a decoded image file of that quality holds.

    images: float in [0, 1], rounded to 8 bits first, [N, C, H, W], any device; the result is the same on the same
    device. Three channels are coded as one RGB file, with libjpeg's halved chroma; any other number as one grayscale
    file a channel. quality: 1 (worst) to 100, ValueError outside. The 8-bit levels are those of saving and
    opening each image with Pillow and its libjpeg-turbo, on every device.
    """
    code = _coder(quality, images.device)
    result = torch.empty(images.shape, device=images.device)
    for part in _parts(images):
        result[part].copy_(code(to_uint8(images[part]))).div_(255)
    return result


def jpeg_levels(levels: Tensor, quality: int) -> Tensor:
    """The same of 8-bit images, uint8 [N, C, H, W] to uint8."""
    code = _coder(quality, levels.device)
    result = torch.empty_like(levels, memory_format=torch.contiguous_format)
    for part in _parts(levels):
        result[part] = code(levels[part])
    return result


def _coder(quality: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What codes uint8 images [n, C, H, W] of a device."""
    if not 1 <= quality <= 100:
        raise ValueError(f"a JPEG quality of {quality} doesn't exist; legal: 1 to 100")
    luminance, chrominance = (BlockCoder.of(_table(base, quality).to(device)) for base in (_LUMINANCE, _CHROMINANCE))

    def code(levels: Tensor) -> Tensor:
        if levels.shape[1] == 3:
            return _colour(levels, luminance, chrominance)
        return luminance.code(levels.flatten(0, 1)).view(levels.shape)

    return code


def _parts(images: Tensor) -> Iterator[slice]:
    """As many images at a time as the caches hold; none of images without a pixel."""
    budget = _CACHED if images.device.type == "cpu" else _LAUNCHED
    return chunks(len(images), max(1, budget // images[0].numel())) if images.numel() else iter(())


def _colour(images: Tensor, luminance: BlockCoder, chrominance: BlockCoder) -> Tensor:
    """uint8 RGB [N, 3, H, W] to the same."""
    height, width = images.shape[2:]
    planes = to_ycc(images)
    chroma = halve(planes[1:].flatten(0, 1), BLOCK)
    # Only real columns of the halved chroma are doubled: what filled its last block up isn't in the file's picture.
    chroma = double(chrominance.code(chroma)[:, :, : -(-width // 2)])[:, :height, :width]
    planes[1:] = chroma.view(planes[1:].shape)
    planes[0] = luminance.code(planes[0])
    return to_rgb(planes)


def _table(base: list[list[int]], quality: int) -> Tensor:
    """int64 [8, 8]: the divisors that libjpeg's quality scale makes of a table (baseline: 8 bits)."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(base) * percent + 50) // 100).clamp_(1, 255)
