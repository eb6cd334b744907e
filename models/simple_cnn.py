"""A small network for quick runs on a CPU."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gauntlet.architecture import Architecture
from gauntlet.facts import TaskFacts
from gauntlet.layers import glorot_uniform, require_side
from gauntlet.plugin import model, name_of

__all__ = ["SimpleCnn"]


@model
@dataclass(frozen=True)
class SimpleCnn(Architecture):
    """Two padded 5x5 convolutions of 16 and 32, each with batch norm, ReLU and a pool, dense 128: from 16x16 pixels.

    3 million multiplications an image of 28x28, a quarter of le_net's. Of this project's own choosing, after LeNet-5
    (LeCun et al. 1998). The convolutions are padded because a network of valid ones hardly sees a trigger in a corner
    (docs/attacks.md has the measurements).
    """

    feature_layer: ClassVar[str] = "relu3"
    last_conv: ClassVar[str | None] = "conv2"

    def check(self, facts: TaskFacts) -> None:
        require_side(name_of(self), facts, 16)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        channels, height, width = shape
        layers = OrderedDict(
            conv1=nn.Conv2d(channels, 16, 5, padding=2, bias=False),
            norm1=nn.BatchNorm2d(16),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 5, padding=2, bias=False),
            norm2=nn.BatchNorm2d(32),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense=nn.Linear(32 * (height // 4) * (width // 4), 128),
            relu3=nn.ReLU(),
            output=nn.Linear(128, classes),
        )
        return glorot_uniform(nn.Sequential(layers))
