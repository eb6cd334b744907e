"""Images as tensors: float32 NCHW in [0, 1] at every plug-in boundary, uint8 where they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from gauntlet.errors import GauntletError

__all__ = [
    "ImageSet",
    "Images",
    "checked_images",
    "checked_levels",
    "checked_vector",
    "chunks",
    "quantize",
    "to_float",
    "to_uint8",
]

Images: TypeAlias = Tensor
"""float32 [N, C, H, W] in [0, 1]."""

_ROUNDING = 1e-3
"""What arithmetic may add to either end of [0, 1], a quarter of a level: rounding to 8 bits clips it."""


def to_float(images: Tensor) -> Images:
    """uint8 [0, 255] to float32 [0, 1]."""
    return images.to(torch.float32).div_(255)


def to_uint8(images: Images) -> Tensor:
    """float [0, 1] to uint8 [0, 255], rounded to the nearest level and clipped."""
    return images.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def checked_images(images: object, shape: Sequence[int], who: str) -> Images:
    """What somebody's code gave for images of `shape`; GauntletError, naming `who`, unless they are such floats."""
    due = f"float images {list(shape)} in [0, 1]"
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.shape != tuple(shape):
        raise GauntletError(f"{who} gave {_kind(images)}; due: {due}")
    if images.numel():
        # Both at once: on CUDA one wait.
        lowest, highest = torch.stack(images.detach().aminmax()).tolist()
        # Written so that NaN, which both then are, is refused too.
        if not (lowest >= -_ROUNDING and highest <= 1 + _ROUNDING):
            raise GauntletError(f"{who} gave values from {lowest:g} to {highest:g}; due: {due}")
    return images


def checked_levels(levels: object, shape: Sequence[int], who: str) -> Tensor:
    """The same for images of 8 bits."""
    if not isinstance(levels, Tensor) or levels.dtype != torch.uint8 or levels.shape != tuple(shape):
        raise GauntletError(f"{who} gave {_kind(levels)}; due: uint8 images {list(shape)}")
    return levels


def checked_vector(values: object, dtype: torch.dtype, count: int, who: str) -> Tensor:
    """What somebody's code gave for `count` values; GauntletError, naming `who`, unless they are a tensor of those."""
    if not isinstance(values, Tensor) or values.dtype != dtype or values.shape != (count,):
        raise GauntletError(f"{who} gave {_kind(values)}; due: {str(dtype).removeprefix('torch.')} [{count}]")
    return values


def _check_base(images: object) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        raise GauntletError(f"an image set was given {_kind(images)} for images; due: uint8 [N, C, H, W], 0 to 255")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "None" if value is None else type(value).__name__


def quantize(images: Images) -> Images:
    """Round to the 8 bits that a real image file has."""
    return to_float(to_uint8(images))


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(count)."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled set of images that shares its base: a selection of base rows, some of them changed.

    base: uint8 [N, C, H, W], never copied. rows: int64 [M]; a row below N is that base image, a row r >= N is
    changed[r - N]. labels: int64 [M]. changed: uint8 [K, C, H, W]. auxiliary: int64 [M], the second labels of a task
    that has them, -1 where unknown; None for other tasks, and for the defender.
    """

    base: Tensor
    rows: Tensor
    labels: Tensor
    changed: Tensor
    auxiliary: Tensor | None = None

    def __post_init__(self) -> None:
        # Floats in [0, 1] would train as images that are all but black.
        for images in (self.base, self.changed):
            _check_base(images)
        labels = self.labels
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (len(self.rows),):
            raise GauntletError(f"an image set was given {_kind(labels)} for labels; due: int64 [{len(self.rows)}]")

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, auxiliary: Tensor | None = None) -> ImageSet:
        """All of `images` (uint8 NCHW) with `labels`, unchanged."""
        _check_base(images)
        return cls(images, torch.arange(len(images), device=images.device), labels, images[:0], auxiliary)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.base.shape[1:]
        return channels, height, width

    def images(self, index: Tensor | slice | None = None) -> Tensor:
        """uint8 [n, C, H, W] of the selected positions (all without an index)."""
        rows = self.rows if index is None else self.rows[index]
        size = len(self.base)
        # index_select copies whole images: many times faster than indexing with a tensor.
        if not len(self.changed):
            return self.base.index_select(0, rows)
        batch = self.base.index_select(0, rows.clamp(max=size - 1))
        places = (rows >= size).nonzero().flatten()
        return batch.index_copy_(0, places, self.changed.index_select(0, rows[places] - size))

    def subset(self, index: Tensor) -> ImageSet:
        """The positions that an index or a boolean mask selects; shares the base."""
        auxiliary = None if self.auxiliary is None else self.auxiliary[index]
        return replace(self, rows=self.rows[index], labels=self.labels[index], auxiliary=auxiliary)

    def replaced(self, index: Tensor, images: Tensor, labels: Tensor) -> ImageSet:
        """A new set in which the positions `index` hold other images (uint8) and labels, of any device.

        They keep their auxiliary labels.
        """
        start = len(self.base) + len(self.changed)
        rows, new_labels = self.rows.clone(), self.labels.clone()
        rows[index] = torch.arange(start, start + len(images), device=rows.device)
        new_labels[index] = labels.to(new_labels.device)
        changed = torch.cat([self.changed, images.to(self.changed.device)])
        return replace(self, rows=rows, labels=new_labels, changed=changed)

    def appended(self, images: Tensor, labels: Tensor, auxiliary: Tensor | None = None) -> ImageSet:
        """A new set with `images` (uint8) and `labels`, of any device, at its end.

        auxiliary: their auxiliary labels, where the set has such; unknown ones by default.
        """
        start = len(self.base) + len(self.changed)
        rows = torch.arange(start, start + len(images), device=self.rows.device)
        return replace(
            self,
            rows=torch.cat([self.rows, rows]),
            labels=torch.cat([self.labels, labels.to(self.labels.device)]),
            changed=torch.cat([self.changed, images.to(self.changed.device)]),
            auxiliary=self._with_auxiliary(len(images), auxiliary),
        )

    def _with_auxiliary(self, count: int, more: Tensor | None) -> Tensor | None:
        if self.auxiliary is None:
            return None
        known = self.auxiliary.new_full((count,), -1) if more is None else more.to(self.auxiliary.device)
        return torch.cat([self.auxiliary, known])

    def to(self, device: torch.device) -> ImageSet:
        """The same set on `device`."""
        return ImageSet(
            self.base.to(device),
            self.rows.to(device),
            self.labels.to(device),
            self.changed.to(device),
            None if self.auxiliary is None else self.auxiliary.to(device),
        )

    def materialised(self) -> ImageSet:
        """The same images and labels with a base of their own, which doesn't tell which of them were changed."""
        auxiliary = None if self.auxiliary is None else self.auxiliary.clone()
        return ImageSet.of(self.images(), self.labels.clone(), auxiliary)

    def detached(self) -> ImageSet:
        """The same set whose rows and labels may be written into; base and changed images are shared."""
        auxiliary = None if self.auxiliary is None else self.auxiliary.clone()
        return replace(self, rows=self.rows.clone(), labels=self.labels.clone(), auxiliary=auxiliary)

    def without_auxiliary(self) -> ImageSet:
        """The same set as somebody sees it who knows the task's labels alone."""
        return replace(self, auxiliary=None)

    def digest(self) -> str:
        """SHA-256 of the images and labels, whatever they are made of: what a training on this set depends on."""
        state = hashlib.sha256(repr((len(self), self.shape)).encode())
        state.update(self.labels.cpu().contiguous().numpy().tobytes())
        if self.auxiliary is not None:
            state.update(self.auxiliary.cpu().contiguous().numpy().tobytes())
        for part in chunks(len(self), 8192):
            state.update(self.images(part).cpu().contiguous().numpy().tobytes())
        return state.hexdigest()
