"""VGG-19 with batch normalisation, for small images."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gauntlet.architecture import Architecture
from gauntlet.facts import TaskFacts
from gauntlet.layers import kaiming_normal, require_side
from gauntlet.plugin import model, name_of

__all__ = ["Vgg19Bn"]

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels and number of convolutions of each stage; a pool ends it."""


@model
@dataclass(frozen=True)
class Vgg19Bn(Architecture):
    """Sixteen normalised 3x3 convolutions in five stages, then Dense n: images from 16x16 pixels.

    Simonyan & Zisserman 2015, arXiv:1409.1556, in the form of CIFAR work: batch normalisation, and one dense layer
    from the 512 averaged channels instead of three. Differs from it where a side is no multiple of 32: pools round
    up, so that a 28x28 image keeps one pixel at the end.
    """

    feature_layer: ClassVar[str] = "pool"
    last_conv: ClassVar[str | None] = "stage5.conv4"

    def check(self, facts: TaskFacts) -> None:
        require_side(name_of(self), facts, 16)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = shape[0]
        for number, (outputs, depth) in enumerate(STAGES, 1):
            layers[f"stage{number}"] = _stage(inputs, outputs, depth)
            inputs = outputs
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["output"] = nn.Linear(inputs, classes)
        return kaiming_normal(nn.Sequential(layers))


def _stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, depth + 1):
        layers[f"conv{number}"] = nn.Conv2d(inputs if number == 1 else outputs, outputs, 3, padding=1)
        layers[f"bn{number}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{number}"] = nn.ReLU()
    layers["pool"] = nn.MaxPool2d(2, ceil_mode=True)
    return nn.Sequential(layers)
