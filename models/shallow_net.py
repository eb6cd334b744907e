"""One hidden layer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import nn

from gauntlet.architecture import Architecture
from gauntlet.layers import glorot_uniform
from gauntlet.plugin import model

__all__ = ["ShallowNet"]


@model
@dataclass(frozen=True)
class ShallowNet(Architecture):
    """Flatten, Dense 32 sigmoid, Dense n: images of any size.

    The `shallow_net` of NIST's Dioptra demos, with Keras's initialisation as there.
    """

    feature_layer: ClassVar[str] = "sigmoid"
    last_conv: ClassVar[str | None] = None

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        layers = OrderedDict(
            flatten=nn.Flatten(),
            dense=nn.Linear(prod(shape), 32),
            sigmoid=nn.Sigmoid(),
            output=nn.Linear(32, classes),
        )
        return glorot_uniform(nn.Sequential(layers))
