"""The mean of each class."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["class_means"]


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """float64 [classes, D]: the mean of features [N, D] by labels, int64 [N], 0 for a class without any; and bool
    [classes], which have one.

    Sums by a product, which adds up in one order on every device: index_add on CUDA doesn't.
    """
    belongs = (labels == torch.arange(classes, device=labels.device)[:, None]).double()
    counts = belongs.sum(1)
    return belongs @ features.double() / counts.clamp(min=1)[:, None], counts > 0
