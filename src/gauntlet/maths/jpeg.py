"""A real JPEG round trip through libjpeg."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gauntlet.images import Images, chunks, to_float, to_uint8

__all__ = ["jpeg_round_trip"]

_BLOCK = 8
_MAX_ROWS = 65_500
_STRIP_PIXELS = 1 << 19


def jpeg_round_trip(images: Tensor, quality: int) -> Images:
    """Every image compressed to JPEG and read back: what a decoded image file of that quality holds.

    images: uint8, or float in [0, 1] that is rounded to 8 bits first, [N, C, H, W], any device; the result is float
    [N, C, H, W] in [0, 1] on the same device. Three channels are coded as one RGB file, with libjpeg's halved chroma;
    any other number as one grayscale file a channel. quality: 1 (worst) to 100, ValueError outside. Equal bit for bit
    to saving and opening each image with Pillow. Runs in torch's number of threads.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"a JPEG quality of {quality} doesn't exist; legal: 1 to 100")
    levels = (images if images.dtype == torch.uint8 else to_uint8(images)).cpu()
    if not levels.numel():
        decoded = levels
    elif levels.shape[1] == 3:
        decoded = _colour(levels, quality)
    else:
        decoded = _grayscale(levels.flatten(0, 1), quality).view(levels.shape)
    return to_float(decoded.to(images.device))


def _colour(images: Tensor, quality: int) -> Tensor:
    """uint8 [N, 3, H, W] to the same, one file an image: chroma is interpolated across blocks, so none may touch."""
    decoded = torch.empty(images.permute(0, 2, 3, 1).shape, dtype=torch.uint8)
    source, target = images.permute(0, 2, 3, 1).contiguous().numpy(), decoded.numpy()

    def code(part: slice) -> None:
        for index in range(part.start, part.stop):
            target[index] = _code(source[index], quality)

    _spread(code, list(chunks(len(images), 64)))
    return decoded.permute(0, 3, 1, 2)


def _grayscale(planes: Tensor, quality: int) -> Tensor:
    """uint8 [P, H, W] to the same, many planes a file.

    In a grayscale JPEG every 8x8 block is coded by itself, so planes stacked at multiples of 8 come out as they would
    alone; libjpeg fills an image's last blocks by repeating its edge, and so does this.
    """
    count, height, width = planes.shape
    rows, columns = _filled(height), _filled(width)
    decoded = torch.empty_like(planes, memory_format=torch.contiguous_format)

    def code(part: slice) -> None:
        strip = planes[part][:, rows][:, :, columns]
        levels = _code(strip.reshape(-1, len(columns)).numpy(), quality)
        decoded[part] = torch.from_numpy(levels).view(strip.shape)[:, :height, :width]

    size = max(1, min(_MAX_ROWS // len(rows), _STRIP_PIXELS // (len(rows) * len(columns))))
    _spread(code, list(chunks(count, size)))
    return decoded


def _filled(size: int) -> Tensor:
    """The source index of each position when an axis is filled up to whole blocks with its last value."""
    return torch.arange(-(-size // _BLOCK) * _BLOCK).clamp(max=size - 1)


def _code(levels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = BytesIO()
    Image.fromarray(levels).save(file, format="JPEG", quality=quality)
    with Image.open(file) as image:
        return np.array(image)


def _spread(work: Callable[[slice], None], parts: list[slice]) -> None:
    """Run `work` on every part, in torch's number of threads: libjpeg runs outside the interpreter's lock."""
    threads = min(torch.get_num_threads(), len(parts))
    if threads == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))
