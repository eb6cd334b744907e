"""MNIST."""

from __future__ import annotations

from dataclasses import dataclass

from gauntlet.plugin import task
from gauntlet.task import LoadContext, RawTask, TaskSource

from ._idx import load_idx_task


@task
@dataclass(frozen=True)
class Mnist(TaskSource):
    """60,000 + 10,000 handwritten digits, 1x28x28, in DATA/MNIST/raw.

    LeCun, Bottou, Bengio & Haffner 1998, Proceedings of the IEEE 86 (11).
    """

    def load(self, context: LoadContext) -> RawTask:
        """DataError when it is not there and can't be downloaded."""

        def download() -> object:
            from torchvision.datasets import MNIST

            return MNIST(context.data_dir, download=True)

        names = tuple(str(digit) for digit in range(10))
        return load_idx_task("MNIST", context, download, names, "MNIST (LeCun et al. 1998)")
