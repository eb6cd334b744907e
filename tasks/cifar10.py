"""CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gauntlet.plugin import task
from gauntlet.task import LoadContext, RawTask, TaskSource

from ._download import fetch

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


@task
@dataclass(frozen=True)
class Cifar10(TaskSource):
    """50,000 + 10,000 colour photographs, 3x32x32, in DATA/cifar-10-batches-py (checked against its MD5 sums).

    Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """

    def load(self, context: LoadContext) -> RawTask:
        """DataError when it is not there, whole, and can't be downloaded."""
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import check_integrity

        def both(*, download: bool) -> tuple[CIFAR10, CIFAR10]:
            return CIFAR10(context.data_dir, train=True, download=download), CIFAR10(context.data_dir, train=False)

        folder = context.data_dir / CIFAR10.base_folder
        archive = context.data_dir / CIFAR10.filename
        try:
            training, test = both(download=False)
        except RuntimeError:
            unpackable = LoadContext(
                context.data_dir, context.offline and not check_integrity(archive, CIFAR10.tgz_md5)
            )
            fetch("CIFAR-10", folder, unpackable, lambda: both(download=True))
            training, test = both(download=False)
        images, labels = _tensors(training)
        names = tuple(training.classes)
        return RawTask(images, labels, names, "CIFAR-10 (Krizhevsky 2009)", *_tensors(test))


def _tensors(part: CIFAR10) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)
