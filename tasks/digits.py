"""The embedded task: needs no network and no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from gauntlet.plugin import task
from gauntlet.task import LoadContext, RawTask, TaskSource

_SIDE = 8
_LEVELS = 16


@task
@dataclass(frozen=True)
class Digits(TaskSource):
    """1,797 handwritten digits that scikit-learn carries, 8x8 with 17 grey levels, enlarged to size x size.

    Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository, its test part. No own test set.
    """

    size: Annotated[int, Field(ge=_SIDE, le=224)] = 28

    def load(self, context: LoadContext) -> RawTask:  # noqa: ARG002
        """Reads nothing outside the installed packages."""
        from sklearn.datasets import load_digits

        small, labels = load_digits(return_X_y=True)
        grey = np.asarray(small, dtype=np.int64).reshape(-1, _SIDE, _SIDE)
        images = torch.from_numpy(enlarge(grey, self.size)).unsqueeze(1)
        names = tuple(str(digit) for digit in range(10))
        provenance = f"scikit-learn's digits (Alpaydin & Kaynak 1998), enlarged to {self.size}x{self.size}, bilinear"
        return RawTask(images, torch.from_numpy(np.asarray(labels, dtype=np.int64)), names, provenance)


def enlarge(grey: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
    """int64 [N, 8, 8] of levels 0 to 16, to uint8 [N, size, size] of 0 to 255: bilinear, pixel centres aligned.

    In whole numbers, so that every machine yields the same bytes and so the same data hash.
    """
    weights = _weights(size)
    full = _LEVELS * (2 * size) ** 2
    levels = weights @ grey @ weights.T
    return ((levels * 510 + full) // (2 * full)).astype(np.uint8)


def _weights(size: int) -> npt.NDArray[np.int64]:
    """int64 [size, 8]: how much each source pixel adds to each new one, in parts of 2 * size."""
    parts = 2 * size
    place = np.clip((2 * np.arange(size) + 1) * _SIDE - size, 0, (_SIDE - 1) * parts)
    distance = np.abs(place[:, None] - np.arange(_SIDE)[None, :] * parts)
    weights: npt.NDArray[np.int64] = np.maximum(parts - distance, 0)
    return weights
