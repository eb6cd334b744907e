"""What a training minimises; attacks and defenses that change the training give their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet.errors import missing
from gauntlet.images import Images
from gauntlet.network import Network

__all__ = ["Batch", "CrossEntropy", "Objective"]


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's data on the device: images float32 [n, C, H, W] in [0, 1], labels int64 [n], positions int64 [n]
    of the samples in the image set that is trained on, and the step's generator for further draws.
    """

    images: Images
    labels: Tensor
    positions: Tensor
    generator: torch.Generator


class Objective:
    """A loss over one batch."""

    def loss(self, network: Network, batch: Batch) -> Tensor:
        """The scalar that is minimised."""
        raise NotImplementedError(missing(self, "loss"))

    def modules(self) -> list[nn.Module]:
        """Further modules whose parameters are trained along with the network's."""
        return []

    def resumable(self) -> bool:
        """Whether all that it remembers from step to step is in the state of its `modules`: only then can a training
        go on from a checkpoint. One that remembers anything else must say False.
        """
        return True

    def reported(self) -> Mapping[str, float]:
        """Parts of the epoch that has just ended, for its curves: `Loss_NAME` and `Scale_NAME` of each task."""
        return {}

    def spec(self) -> dict[str, Any] | None:
        """Settings that identify this objective in a key; None where a training under it can't be shared."""
        return None


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Plain cross-entropy."""

    label_smoothing: float = 0.0

    def loss(self, network: Network, batch: Batch) -> Tensor:
        return cross_entropy(network(batch.images), batch.labels, label_smoothing=self.label_smoothing)

    def spec(self) -> dict[str, Any]:
        return {"objective": "cross_entropy", "label_smoothing": self.label_smoothing}
