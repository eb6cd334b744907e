"""Two MNIST digits in one image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from gauntlet.images import chunks
from gauntlet.plugin import task
from gauntlet.randomness import generator
from gauntlet.task import LoadContext, RawTask, TaskSource

from .mnist import Mnist

__all__ = ["MultiMnist", "overlaid", "pairs"]

_DIGIT = 28
_SIDE = 45
_TOP, _LEFT, _RIGHT = 5, 0, 17
_CLASSES = 100
_PART = 4096

_Side = Annotated[int, Field(ge=8, le=512)]


@task
@dataclass(frozen=True)
class MultiMnist(TaskSource):
    """60,000 + 10,000 pairs of MNIST digits of 100 classes, label 10 * left + right, 1x28x28, made from `mnist`.

    Sabour, Frosst & Hinton 2017, arXiv:1710.09829, in the form that Backdoors 101 gives it: the left digit lies in rows
    5 to 32 and columns 0 to 27 of a 45x45 canvas, the right one in the same rows and columns 17 to 44; where both are,
    the brighter pixel counts. The canvas is resized to size = [height, width] by Pillow's bilinear filter, which widens
    where it shrinks (antialias) and computes in whole numbers. channels = 3 repeats the grey image.

    Training pairs come from MNIST's training digits, test pairs from its test digits, each digit once on the left and
    once on the right; the pairs are the same in every run. A smaller train_size or test_size takes the first pairs of
    an order that goes through the classes in turn: it lies inside every larger one, its classes are balanced, and
    only near the full size do they take MNIST's own shares. The defender's reserve shares single digits with the
    training set, but no pair.
    """

    size: tuple[_Side, _Side] = (28, 28)
    channels: Literal[1, 3] = 1
    train_size: Annotated[int, Field(ge=2 * _CLASSES, le=60_000)] = 60_000
    test_size: Annotated[int, Field(ge=_CLASSES, le=10_000)] = 10_000

    def load(self, context: LoadContext) -> RawTask:
        """DataError when MNIST is not there and can't be downloaded."""
        digits = Mnist().load(context)
        if digits.test_images is None or digits.test_labels is None:
            raise AssertionError("MNIST has a test set")
        images, labels = self._composed(digits.images, digits.labels, self.train_size, "training")
        test_images, test_labels = self._composed(digits.test_images, digits.test_labels, self.test_size, "test")
        names = tuple(f"{left} {right}" for left in range(10) for right in range(10))
        height, width = self.size
        provenance = f"pairs of MNIST digits (LeCun et al. 1998), {height}x{width}"
        return RawTask(images, labels, names, provenance, test_images, test_labels)

    def _composed(self, images: Tensor, labels: Tensor, count: int, part: str) -> tuple[Tensor, Tensor]:
        left, right = pairs(labels, count, part)
        height, width = self.size
        composed = torch.empty(len(left), self.channels, height, width, dtype=torch.uint8)
        for rows in chunks(len(left), _PART):
            canvas = overlaid(images[left[rows], 0], images[right[rows], 0])
            composed[rows] = _resized(canvas, height, width).unsqueeze(1)
        return composed, 10 * labels[left] + labels[right]


def pairs(labels: Tensor, count: int, part: str) -> tuple[Tensor, Tensor]:
    """The rows of the left and of the right digits of the first `count` pairs; labels: int64 [N] of all digits.

    The pairs of two permutations, sorted by how many of their class came before them.
    """
    draw = generator(0, "multi_mnist", part)
    left, right = (torch.randperm(len(labels), generator=draw) for _ in range(2))
    classes = 10 * labels[left] + labels[right]
    before = torch.empty_like(classes)
    for value in range(_CLASSES):
        members = (classes == value).nonzero()[:, 0]
        before[members] = torch.arange(len(members))
    order = torch.argsort(before * _CLASSES + classes)[:count]
    return left[order], right[order]


def overlaid(left: Tensor, right: Tensor) -> Tensor:
    """uint8 [N, 28, 28] twice, to uint8 [N, 45, 45]."""
    canvas = left.new_zeros(2, len(left), _SIDE, _SIDE)
    rows = slice(_TOP, _TOP + _DIGIT)
    canvas[0, :, rows, _LEFT : _LEFT + _DIGIT] = left
    canvas[1, :, rows, _RIGHT : _RIGHT + _DIGIT] = right
    return canvas.amax(0)


def _resized(images: Iterable[Tensor], height: int, width: int) -> Tensor:
    """uint8 [N, H, W] to uint8 [N, height, width]."""
    resized = [
        np.asarray(Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.BILINEAR))
        for image in images
    ]
    return torch.from_numpy(np.stack(resized))
