"""DeepID, the face network of the CSAW-HackML-2020 contest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gauntlet.architecture import Architecture
from gauntlet.facts import TaskFacts
from gauntlet.layers import glorot_uniform, require_side
from gauntlet.plugin import model, name_of

__all__ = ["DeepId"]

ORIGINAL = 31
"""The shorter side, in pixels, from which conv_4 finds its two pixels with pools that round down."""


class _Body(nn.Module):
    """The layers have the names that they have in the contest's files; pool_3 feeds both fc_1 and conv_4."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        up = min(height, width) < ORIGINAL
        high, wide = _side(height, up), _side(width, up)
        self.conv_1 = nn.Conv2d(channels, 20, 4)
        self.conv_1_relu = nn.ReLU()
        self.pool_1 = nn.MaxPool2d(2, ceil_mode=up)
        self.conv_2 = nn.Conv2d(20, 40, 3)
        self.conv_2_relu = nn.ReLU()
        self.pool_2 = nn.MaxPool2d(2, ceil_mode=up)
        self.conv_3 = nn.Conv2d(40, 60, 3)
        self.conv_3_relu = nn.ReLU()
        self.pool_3 = nn.MaxPool2d(2, ceil_mode=up)
        self.flatten_1 = nn.Flatten()
        self.fc_1 = nn.Linear(60 * high * wide, 160)
        self.conv_4 = nn.Conv2d(60, 80, 2)
        self.conv_4_relu = nn.ReLU()
        self.flatten_2 = nn.Flatten()
        self.fc_2 = nn.Linear(80 * (high - 1) * (wide - 1), 160)
        self.add_1_relu = nn.ReLU()
        self.output = nn.Linear(160, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool_1(self.conv_1_relu(self.conv_1(images)))
        maps = self.pool_2(self.conv_2_relu(self.conv_2(maps)))
        maps = self.pool_3(self.conv_3_relu(self.conv_3(maps)))
        first = self.fc_1(self.flatten_1(maps))
        second = self.fc_2(self.flatten_2(self.conv_4_relu(self.conv_4(maps))))
        logits: Tensor = self.output(self.add_1_relu(first + second))
        return logits


def _side(pixels: int, up: bool) -> int:
    """The side of the map that leaves pool_3."""
    for kernel in (4, 3, 3):
        pixels = (pixels - kernel + 1 + up) // 2
    return pixels


@model
@dataclass(frozen=True)
class DeepId(Architecture):
    """Three convolutions of 20, 40 and 60, then a dense layer from both the third and a fourth one: from 24x24 pixels.

    Sun et al. 2014, DeepID, in the form of CSAW-HackML-2020: 601,643 parameters for 1,283 classes of 3x55x47, with
    Keras's initialisation and the layer names of the contest's files. Differs from it below 31 pixels, the shorter side
    counts: there the pools round up. The contest prunes conv_3; the last convolution is conv_4.
    """

    feature_layer: ClassVar[str] = "add_1_relu"
    last_conv: ClassVar[str | None] = "conv_4"

    def check(self, facts: TaskFacts) -> None:
        require_side(name_of(self), facts, 24)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return glorot_uniform(_Body(shape, classes))
