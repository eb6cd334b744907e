"""ResNet-18 for small images."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from gauntlet.architecture import Architecture
from gauntlet.facts import TaskFacts
from gauntlet.layers import require_side
from gauntlet.plugin import model, name_of
from gauntlet.settings import Count

__all__ = ["ResNet18"]


class _Block(nn.Module):
    """Two 3x3 convolutions, each normalised, and the shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, images: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(images)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(images))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(inputs, outputs, stride), _Block(outputs, outputs, 1))


@model
@dataclass(frozen=True)
class ResNet18(Architecture):
    """ResNet-18 with the stem for small images (3x3, stride 1, no pool): images from 8x8 pixels.

    He et al. 2016, arXiv:1512.03385, with the stem that CIFAR work uses. width: channels of the first stage, 64 in
    the paper; they double at each of the three next ones, and 16 needs a sixteenth of the multiplications.
    """

    feature_layer: ClassVar[str] = "pool"
    last_conv: ClassVar[str | None] = "layer4.1.conv2"

    width: Count = 64

    def check(self, facts: TaskFacts) -> None:
        require_side(name_of(self), facts, 8)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        width = self.width
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(shape[0], width, 3, 1, 1, bias=False),
                bn1=nn.BatchNorm2d(width),
                relu=nn.ReLU(),
                layer1=_stage(width, width, 1),
                layer2=_stage(width, 2 * width, 2),
                layer3=_stage(2 * width, 4 * width, 2),
                layer4=_stage(4 * width, 8 * width, 2),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                output=nn.Linear(8 * width, classes),
            )
        )
