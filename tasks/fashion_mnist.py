"""Fashion-MNIST."""

from __future__ import annotations

from dataclasses import dataclass

from gauntlet.plugin import task
from gauntlet.task import LoadContext, RawTask, TaskSource

from ._idx import load_idx_task

_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@task
@dataclass(frozen=True)
class FashionMnist(TaskSource):
    """60,000 + 10,000 pieces of clothing, 1x28x28, in DATA/FashionMNIST/raw.

    Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747.
    """

    def load(self, context: LoadContext) -> RawTask:
        """DataError when it is not there and can't be downloaded."""

        def download() -> object:
            from torchvision.datasets import FashionMNIST

            return FashionMNIST(context.data_dir, download=True)

        return load_idx_task("FashionMNIST", context, download, _NAMES, "Fashion-MNIST (Xiao et al. 2017)")
