"""Encoded images of unknown origin to one tensor."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from gauntlet.errors import DataError
from gauntlet.formats.pictures import converted, is_grey
from gauntlet.images import chunks
from gauntlet.task import RawTask

from ._download import one_line

__all__ = ["SUFFIXES", "Box", "Encoded", "Labelled", "cropped", "decode", "raw_task"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp"})
"""The files that are taken for images, lower case."""

_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP")
_MAX_ENCODED = 1 << 26
_MAX_PIXELS = 1 << 24
_MAX_TOTAL = 1 << 36
_CHUNK = 256

Box: TypeAlias = tuple[int, int, int, int]
"""Left, upper, right and lower edge in pixels; the right and the lower one are outside."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A PNG, JPEG, BMP, PPM or WebP. where: how an error names it. data: its bytes, or the file that holds them.

    box: the part of it that counts; None for all of it.
    """

    where: str
    data: bytes | Path
    box: Box | None = None


@dataclass(frozen=True)
class Labelled:
    """Encoded images and their labels, one each."""

    images: list[Encoded]
    labels: list[int]


def raw_task(
    training: Labelled,
    test: Labelled | None,
    class_names: tuple[str, ...],
    provenance: str,
    size: int | tuple[int, int] | None,
    channels: int | None,
) -> RawTask:
    """The task that these images make; all are decoded together, so that they get one shape."""
    images = decode([*training.images, *(test.images if test else [])], size, channels)
    labels = torch.tensor(training.labels, dtype=torch.int64)
    count = len(labels)
    if test is None:
        return RawTask(images, labels, class_names, provenance)
    test_labels = torch.tensor(test.labels, dtype=torch.int64)
    return RawTask(images[:count], labels, class_names, provenance, images[count:], test_labels)


def decode(items: Sequence[Encoded], size: int | tuple[int, int] | None = None, channels: int | None = None) -> Tensor:
    """uint8 [N, C, H, W] of the images in their order, N >= 1.

    size resizes each to size x size, or to (height, width), bilinear; without it all must have the first one's size.
    channels (1 or 3) converts; without it one colour image makes all of them colour. DataError names the first one
    that won't do.
    """
    size = (size, size) if isinstance(size, int) else size
    colours, height, width = _pixels(items[0], size, channels).shape
    try:
        decoded = _decode_as(items, (colours, height, width), size, channels)
    except _ColourFoundError:
        decoded = _decode_as(items, (3, height, width), size, channels)
    return torch.from_numpy(decoded)


class _ColourFoundError(Exception):
    """A colour image among grey ones."""


def _decode_as(
    items: Sequence[Encoded], shape: tuple[int, int, int], size: tuple[int, int] | None, channels: int | None
) -> npt.NDArray[np.uint8]:
    needed = len(items) * shape[0] * shape[1] * shape[2]
    if needed > _MAX_TOTAL:
        text = f"{len(items)} images of {shape[1]}x{shape[2]} would take {needed >> 30} GiB"
        raise DataError(f"{items[0].where} and on: {text}; legal: at most {_MAX_TOTAL >> 30} GiB, so give a `size`")
    decoded = np.empty((len(items), *shape), dtype=np.uint8)

    def fill(part: slice) -> None:
        for row in range(part.start, part.stop):
            pixels = _pixels(items[row], size, channels)
            if pixels.shape[1:] != shape[1:]:
                sizes = f"{pixels.shape[1]}x{pixels.shape[2]}, the first one {shape[1]}x{shape[2]}"
                raise DataError(f"{items[row].where}: the image is {sizes}; give a `size` to resize all of them")
            if len(pixels) > shape[0]:
                raise _ColourFoundError
            decoded[row] = pixels

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, chunks(len(items), _CHUNK)):
            pass
    return decoded


def _pixels(item: Encoded, size: tuple[int, int] | None, channels: int | None) -> npt.NDArray[np.uint8]:
    """uint8 [1 or 3, H, W]."""
    try:
        with Image.open(_stream(item), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > _MAX_PIXELS:
                raise DataError(f"{item.where}: {width}x{height} pixels; legal: at most {_MAX_PIXELS:,} in all")
            grey = is_grey(image, item.where) if channels is None else channels == 1
            plain = converted(image, "L" if grey else "RGB", item.where)
            if item.box is not None:
                plain = cropped(plain, item.box, item.where)
            if size is not None and plain.size != size[::-1]:
                plain = plain.resize(size[::-1], Image.Resampling.BILINEAR)
            pixels = np.asarray(plain, dtype=np.uint8)
    except DataError:
        raise
    except Exception as error:  # decoders meet hostile bytes with whatever comes to their mind
        raise DataError(f"{item.where}: the image can't be decoded ({one_line(error)})") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def cropped(image: Image.Image, box: Box, where: str) -> Image.Image:
    """What of the box lies inside the image. DataError when that is nothing."""
    left, upper, right, lower = box
    width, height = image.size
    inside = (max(left, 0), max(upper, 0), min(right, width), min(lower, height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DataError(f"{where}: the box {list(box)} lies outside the image of {width}x{height} pixels")
    return image.crop(inside)


def _stream(item: Encoded) -> io.BytesIO | Path:
    length = item.data.stat().st_size if isinstance(item.data, Path) else len(item.data)
    if length > _MAX_ENCODED:
        raise DataError(f"{item.where}: the encoded image has {length:,} bytes; legal: at most {_MAX_ENCODED:,}")
    return item.data if isinstance(item.data, Path) else io.BytesIO(item.data)
