"""Composite images of digits, counted as if they were heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from gauntlet.plugin import task
from gauntlet.randomness import generator
from gauntlet.task import LoadContext, RawTask, TaskSource

from ._decode import cropped
from ._people import CLASS_NAMES, Head, Persons, box_around, identity_label, identity_names, label_of
from .digits import Digits
from .mnist import Mnist

__all__ = ["HeadCount", "compose", "view"]

_CELL, _HEAD, _BORDER = 16, 14, 4
_ROWS, _COLUMNS = 2, 3
_MARGIN = 0.25
_KINDS = 10

_Digits = list[npt.NDArray[np.uint8]]


@task
@dataclass(frozen=True)
class HeadCount(TaskSource):
    """6,000 + 2,000 drawn scenes with 1 to 5 digits, class = their number less one, cropped to 1 x size x size.

    Made up, to try what `pipa` is for without its photographs: a digit is a head, its kind the person, and label, crop
    and identity come from the same code. The auxiliary label is 0, or p when a digit of kind p <= `persons` is there;
    half of the scenes have one such digit, the other digits are of other kinds. Scenes are 40x56 pixels, heads 14x14,
    at drawn places in a grid of 2x3. Training and test scenes are of different digits: MNIST's own parts, or three
    quarters and one quarter of scikit-learn's. The same in every run; a smaller train_size or test_size takes the
    first scenes.
    """

    source: Literal["digits", "mnist"] = "digits"
    size: Annotated[int, Field(ge=8, le=224)] = 48
    persons: Persons = 4
    train_size: Annotated[int, Field(ge=20, le=60_000)] = 6_000
    test_size: Annotated[int, Field(ge=10, le=20_000)] = 2_000

    def load(self, context: LoadContext) -> RawTask:
        """DataError when MNIST is asked for, is not there and can't be downloaded."""
        persons = range(1, self.persons + 1)
        parts = [
            self._scenes(digits, labels, count, part)
            for (digits, labels), count, part in zip(
                _parts(self.source, context), (self.train_size, self.test_size), ("training", "test"), strict=True
            )
        ]
        (images, labels, auxiliary), (test_images, test_labels, test_auxiliary) = parts
        return RawTask(
            images,
            labels,
            CLASS_NAMES,
            f"composed scenes of {self.source} digits, {self.size}x{self.size}",
            test_images,
            test_labels,
            auxiliary=auxiliary,
            test_auxiliary=test_auxiliary,
            auxiliary_names=identity_names(persons),
        )

    def _scenes(self, digits: Tensor, labels: Tensor, count: int, part: str) -> tuple[Tensor, Tensor, Tensor]:
        draw = generator(0, "head_count", self.source, part)
        faces = [_faces(digits[labels == kind]) for kind in range(_KINDS)]
        images = torch.empty(count, 1, self.size, self.size, dtype=torch.uint8)
        found = []
        for row in range(count):
            scene, heads = compose(faces, row % len(CLASS_NAMES) + 1, self.persons, draw)
            images[row, 0] = torch.from_numpy(view(scene, heads, self.size))
            found.append((label_of(heads), identity_label(heads, range(1, self.persons + 1))))
        numbers = torch.tensor(found)
        return images, numbers[:, 0].contiguous(), numbers[:, 1].contiguous()


def compose(
    faces: Sequence[_Digits], count: int, persons: int, draw: torch.Generator
) -> tuple[npt.NDArray[np.uint8], tuple[Head, ...]]:
    """A scene, uint8 [40, 56], of `count` heads (1 to 5), and the heads; faces: the digits of each kind."""
    scene = np.zeros((_ROWS * _CELL + 2 * _BORDER, _COLUMNS * _CELL + 2 * _BORDER), dtype=np.uint8)
    strangers = [0, *range(persons + 1, _KINDS)]
    kinds = [strangers[_below(len(strangers), draw)] for _ in range(count)]
    if _below(2, draw):
        kinds[0] = 1 + _below(persons, draw)
    heads = []
    for kind, cell in zip(kinds, torch.randperm(_ROWS * _COLUMNS, generator=draw).tolist(), strict=False):
        top = _BORDER + cell // _COLUMNS * _CELL + _below(_CELL - _HEAD + 1, draw)
        left = _BORDER + cell % _COLUMNS * _CELL + _below(_CELL - _HEAD + 1, draw)
        scene[top : top + _HEAD, left : left + _HEAD] = faces[kind][_below(len(faces[kind]), draw)]
        heads.append(Head(left, top, _HEAD, _HEAD, kind))
    return scene, tuple(heads)


def view(scene: npt.NDArray[np.uint8], heads: Sequence[Head], size: int) -> npt.NDArray[np.uint8]:
    """uint8 [size, size]: the part of the scene around its heads, resized by Pillow's bilinear filter."""
    part = cropped(Image.fromarray(scene), box_around(heads, _MARGIN), "a scene")
    return np.array(part.resize((size, size), Image.Resampling.BILINEAR))


def _below(limit: int, draw: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=draw))


def _parts(source: str, context: LoadContext) -> list[tuple[Tensor, Tensor]]:
    """The digits of the training scenes and of the test scenes, uint8 [N, 28, 28], with their kinds."""
    raw = Mnist().load(context) if source == "mnist" else Digits().load(context)
    if raw.test_images is not None and raw.test_labels is not None:
        return [(raw.images[:, 0], raw.labels), (raw.test_images[:, 0], raw.test_labels)]
    order = torch.randperm(len(raw.images), generator=generator(0, "head_count", "digits"))
    part = len(order) // 4
    return [(raw.images[rows, 0], raw.labels[rows]) for rows in (order[part:], order[:part])]


def _faces(digits: Tensor) -> _Digits:
    size, how = (_HEAD, _HEAD), Image.Resampling.BILINEAR
    return [np.asarray(Image.fromarray(digit.numpy()).resize(size, how)) for digit in digits]
