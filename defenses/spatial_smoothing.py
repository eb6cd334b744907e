"""Spatial smoothing: a median filter over every image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.defense import Preprocessing
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.maths.median import median_filter, median_levels
from gauntlet.plugin import defense
from gauntlet.settings import Count

__all__ = ["SpatialSmoothing"]


@defense
@dataclass(frozen=True)
class SpatialSmoothing(Preprocessing):
    """The median of the window around each value, channel by channel, borders mirrored.

    Xu, Evans and Qi 2018, arXiv:1704.01155 (feature squeezing); the window of the NIST Dioptra demos.
    """

    window: Count = 3

    def check(self, facts: TaskFacts) -> None:
        _, height, width = facts.shape
        if self.window > min(height, width):
            raise SettingError(
                f"spatial_smoothing: window = {self.window} is larger than the {height}x{width} images of "
                f"{facts.name}; legal: 1 to {min(height, width)}"
            )

    def transform(self, images: Images, generator: torch.Generator) -> Images:  # noqa: ARG002
        return median_filter(images, self.window)

    def transform_levels(self, levels: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        return median_levels(levels, self.window)
