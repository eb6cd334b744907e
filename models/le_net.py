"""The convolutional network of the Dioptra demos on MNIST."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gauntlet.architecture import Architecture
from gauntlet.facts import TaskFacts
from gauntlet.layers import Dropout, glorot_uniform, require_side
from gauntlet.plugin import model, name_of

__all__ = ["LeNet"]


@model
@dataclass(frozen=True)
class LeNet(Architecture):
    """Two valid 3x3 convolutions of 32 and 64, pool, dense 128: images from 6x6 pixels.

    The `le_net` of NIST's Dioptra demos (not LeCun's LeNet-5), with Keras's initialisation as there. Its features
    are the 128 values after the second dropout, layer 6 there; outside training dropout changes nothing.
    """

    feature_layer: ClassVar[str] = "dropout2"
    last_conv: ClassVar[str | None] = "conv2"

    def check(self, facts: TaskFacts) -> None:
        require_side(name_of(self), facts, 6)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        channels, height, width = shape
        layers = OrderedDict(
            conv1=nn.Conv2d(channels, 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            dropout1=Dropout(0.25),
            flatten=nn.Flatten(),
            dense=nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
            relu3=nn.ReLU(),
            dropout2=Dropout(0.5),
            output=nn.Linear(128, classes),
        )
        return glorot_uniform(nn.Sequential(layers))
