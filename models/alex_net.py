"""AlexNet, adapted to small images."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gauntlet.architecture import Architecture
from gauntlet.facts import TaskFacts
from gauntlet.layers import Dropout, glorot_uniform, require_side
from gauntlet.plugin import model, name_of

__all__ = ["AlexNet"]

ORIGINAL = 195
"""The shorter side, in pixels, from which the unpadded layers leave at least one pixel of the map."""


@model
@dataclass(frozen=True)
class AlexNet(Architecture):
    """Five convolutions and two dense layers of 4096: images from 15x15 pixels.

    The `alex_net` of NIST's Dioptra demos after Krizhevsky et al. 2012, with Keras's initialisation as there: its
    layers, kernels, widths, tanh and dropout. From 195 pixels on, the shorter side counts, it is that network
    exactly: unpadded, first stride 4. That collapses smaller images to nothing, so below 195 pixels two things
    differ: convolutions are padded to keep the size, and the first stride is side / 32 rounded down, within 1 to 4
    (1 at 28 and 32 pixels, 2 at 64). Three pools of 3x3 with stride 2 then need 15 pixels.
    """

    feature_layer: ClassVar[str] = "dropout2"
    last_conv: ClassVar[str | None] = "conv5"

    def check(self, facts: TaskFacts) -> None:
        require_side(name_of(self), facts, 15)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        channels, height, width = shape
        side = min(height, width)
        padded = side < ORIGINAL
        stride = min(4, max(1, side // 32)) if padded else 4

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2 if padded else 0)

        flat = 384 * _after(height, stride, padded) * _after(width, stride, padded)
        layers = OrderedDict(
            conv1=conv(channels, 96, 11, stride),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(3, 2),
            norm1=nn.BatchNorm2d(96),
            conv2=conv(96, 256, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(3, 2),
            norm2=nn.BatchNorm2d(256),
            conv3=conv(256, 256, 3),
            relu3=nn.ReLU(),
            conv4=conv(256, 384, 3),
            relu4=nn.ReLU(),
            conv5=conv(384, 384, 3),
            relu5=nn.ReLU(),
            pool3=nn.MaxPool2d(3, 2),
            norm3=nn.BatchNorm2d(384),
            flatten=nn.Flatten(),
            dense1=nn.Linear(flat, 4096),
            tanh1=nn.Tanh(),
            dropout1=Dropout(0.5),
            dense2=nn.Linear(4096, 4096),
            tanh2=nn.Tanh(),
            dropout2=Dropout(0.5),
            output=nn.Linear(4096, classes),
        )
        return glorot_uniform(nn.Sequential(layers))


def _after(side: int, stride: int, padded: bool) -> int:
    """The side of the map that leaves the third pool."""
    shrink = (0, 0, 0) if padded else (10, 4, 6)
    first = (side - 1 - shrink[0]) // stride + 1
    second = _pool(first) - shrink[1]
    return _pool(_pool(second) - shrink[2])


def _pool(side: int) -> int:
    return (side - 3) // 2 + 1
