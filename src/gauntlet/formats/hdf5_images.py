"""Labelled images in an HDF5 file, as CSAW-HackML-2020 and others keep them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gauntlet.errors import DataError
from gauntlet.formats.hdf5 import DATA_LIMIT, Form, Hdf5, opened
from gauntlet.formats.pictures import resized
from gauntlet.images import chunks

__all__ = ["Layout", "Reading", "ValueRange", "check_images", "read_images", "read_labels"]

Layout: TypeAlias = Literal["auto", "nchw", "nhwc"]
ValueRange: TypeAlias = Literal["auto", "0..1", "0..255"]

_CHANNELS = (1, 3)
_PART = 1 << 25
"""Bytes of the file's images that are worked on at once, about."""
_LABEL_LIMIT = 1 << 30
_MANY = 256
"""Values below which a maximum of 1 may be chance."""
_DARK = 2
"""Real numbers that end below this are hardly meant as 0..255: the brightest pixel would be black."""


@dataclass(frozen=True)
class Reading:
    """How the images of a file were taken, where it may leave that open. doubt: a sentence where that looks wrong."""

    layout: str
    value_range: str
    doubt: str = ""

    def __str__(self) -> str:
        return f"{self.layout}, values {self.value_range}"


def read_images(
    path: Path,
    image_key: str = "data",
    label_key: str = "label",
    layout: Layout = "auto",
    value_range: ValueRange = "auto",
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Reading]:
    """The images, uint8 [N, C, H, W] with 1 or 3 channels, their labels, int64 [N], and how they were taken.

    size: (height, width) to resize them to, bilinear.

    layout `auto` takes the axis that has 1 or 3 entries for the channels, and images [N, H, W] for grey ones.
    value_range `auto`: whole-number types hold 0..255, real numbers 0..1 if none is above 1, else 0..255. Values are
    rounded to the nearest of 256 levels. DataError names the file and what is wrong: absent arrays, counts that
    differ, no images, values outside the range or NaN, labels that are no whole numbers from 0, a shape that fits
    neither layout or both.
    """
    with opened(path) as file:
        images = _Images.of(file, image_key, layout)
        labels = _labels(file, label_key, image_key, images.count)
        if size is not None:
            needed = images.count * images.shape[0] * math.prod(size)
            if needed > DATA_LIMIT:
                raise DataError(
                    f"{path}: {images.count:,} images of {size[0]}x{size[1]} would have {needed:,} bytes; legal: at "
                    f"most {DATA_LIMIT:,}"
                )
        scale, doubt = images.scale(value_range)
        read = images.read(scale)
        form = Reading(images.layout, "0..255" if scale == 1 else "0..1", doubt)
        return (read if size is None else resized(read, size)), labels, form


def check_images(path: Path) -> None:
    """Raise DataError where `read_images` would, without keeping the images."""
    with opened(path) as file:
        images = _Images.of(file, "data", "auto")
        _labels(file, "label", "data", images.count)
        images.scale("auto")


def read_labels(
    path: Path, image_key: str = "data", label_key: str = "label", layout: Layout = "auto"
) -> tuple[tuple[int, int, int], Tensor]:
    """The images' (C, H, W) and the labels, int64 [N], without reading the images; DataError as `read_images`."""
    with opened(path) as file:
        images = _Images.of(file, image_key, layout)
        return images.shape, _labels(file, label_key, image_key, images.count)


@dataclass(frozen=True, eq=False)
class _Images:
    """An array of images; channels: the position of its channel axis, None for grey images without one."""

    file: Hdf5
    key: str
    form: Form
    channels: int | None

    @classmethod
    def of(cls, file: Hdf5, key: str, layout: Layout) -> _Images:
        form = file.form(key)
        file.check(key, DATA_LIMIT)
        if not form.shape or 0 in form.shape:
            raise DataError(f"{file.path}: {key} has the shape {list(form.shape)}: there is no image in it")
        return cls(file, key, form, _channel_axis(file.path, key, form.shape, layout))

    @property
    def count(self) -> int:
        return self.form.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        sides = list(self.form.shape[1:])
        channels = 1 if self.channels is None else sides.pop(self.channels - 1)
        return channels, sides[0], sides[1]

    @property
    def rows(self) -> int:
        """Images of one part."""
        return max(1, _PART * self.count // self.form.bytes)

    def part(self, rows: slice) -> npt.NDArray[Any]:
        return self.file.array(self.key, DATA_LIMIT, rows)

    @property
    def layout(self) -> str:
        return {None: "[N, H, W]", 1: "[N, C, H, W]", 3: "[N, H, W, C]"}[self.channels]

    def scale(self, value_range: ValueRange) -> tuple[float, str]:
        """What the values are multiplied by to reach 0..255, and a sentence where that looks wrong."""
        if self.form.dtype == np.uint8 and value_range != "0..1":
            return 1.0, self._doubted() if value_range == "auto" and self._is_black() else ""
        low, high = self._extremes()
        # An unclear value falls through to the message: NaN is in no range.
        unit = value_range == "0..1" or (value_range == "auto" and self.form.dtype.kind == "f" and high <= 1)
        top = 1 if unit else 255
        if not (low >= 0 and high <= top):
            raise DataError(
                f"{self.file.path}: {self.key} holds values from {low:g} to {high:g}; legal: 0..{top}, without NaN"
            )
        if value_range == "auto" and self.form.dtype.kind == "f" and 1 < high < _DARK:
            return 1.0, (
                f"{self.file.path}: {self.key} holds values from {low:g} to {high:g}, which were taken as 0..255, so "
                "that every image is nearly black; if 0..1 is meant, clip them to it"
            )
        whole = value_range == "auto" and self.form.dtype.kind != "f"
        return (255.0 if unit else 1.0), self._doubted() if whole and high == 1 and self._is_many() else ""

    def _doubted(self) -> str:
        return (
            f"{self.file.path}: {self.key} holds no whole number above 1, and they were taken as 0..255, so that every "
            "image is nearly black; if 0..1 is meant, say value_range=0..1"
        )

    def _is_many(self) -> bool:
        """Whether there are values enough for their maximum to mean something."""
        return math.prod(self.form.shape) >= _MANY

    def _is_black(self) -> bool:
        """Whether bytes end at 1; images of zeros alone are the same in every range."""
        if not self._is_many():
            return False
        high = 0
        for rows in chunks(self.count, self.rows):
            high = max(high, int(self.part(rows).max()))
            if high > 1:  # in the first part, as a rule: the others need not be read for this
                return False
        return high == 1

    def _extremes(self) -> tuple[float, float]:
        low, high = np.inf, -np.inf
        for rows in chunks(self.count, self.rows):
            part = self.part(rows)
            # NaN survives np.minimum, and min() of Python would lose it.
            low, high = np.minimum(low, part.min()), np.maximum(high, part.max())
        return float(low), float(high)

    def read(self, scale: float) -> Tensor:
        read = np.empty((self.count, *self.shape), dtype=np.uint8)
        for rows in chunks(self.count, self.rows):
            part = self.part(rows)
            part = part[:, None] if self.channels is None else np.moveaxis(part, self.channels, 1)
            if part.dtype != np.uint8 or scale != 1:
                part = np.rint(part.astype(np.float64) * scale)
            read[rows] = part
        return torch.from_numpy(read)


def _channel_axis(path: Path, key: str, shape: tuple[int, ...], layout: Layout) -> int | None:
    if len(shape) == 3:
        return None
    first, last = (len(shape) == 4 and shape[axis] in _CHANNELS for axis in (1, 3))
    if layout == "auto" and first and last:
        raise DataError(f"{path}: {key} of shape {list(shape)} may be NCHW or NHWC; give a `layout`")
    if first and layout != "nhwc":
        return 1
    if last and layout != "nchw":
        return 3
    form = {"auto": "[N, C, H, W], [N, H, W, C]", "nchw": "[N, C, H, W]", "nhwc": "[N, H, W, C]"}[layout]
    raise DataError(f"{path}: {key} has the shape {list(shape)}; legal: {form} with 1 or 3 channels, or [N, H, W]")


def _labels(file: Hdf5, key: str, image_key: str, count: int) -> Tensor:
    form = file.form(key)
    if form.shape not in ((count,), (count, 1)):
        raise DataError(
            f"{file.path}: {key} has the shape {list(form.shape)}; due: one label for each of the {count:,} images "
            f"of {image_key}"
        )
    labels = file.array(key, _LABEL_LIMIT).reshape(-1).astype(np.float64)
    odd = ~(np.isfinite(labels) & (labels >= 0) & (labels == np.rint(labels)) & (labels < 2**31))
    if odd.any():
        row = int(odd.argmax())
        raise DataError(f"{file.path}: {key}[{row}] = {labels[row]:g}; legal: whole numbers from 0")
    return torch.from_numpy(labels.astype(np.int64))
