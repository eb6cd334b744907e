"""VGG-16, pretrained on ImageNet where its weights can be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from gauntlet.layers import kaiming_normal
from gauntlet.plugin import model
from gauntlet.transfer import Backbone, Transfer
from gauntlet.weights import Published

__all__ = ["Vgg16"]


@model
@dataclass(frozen=True)
class Vgg16(Transfer):
    """torchvision's VGG-16 without its classifier, pooled, Dense 1024 ReLU, Dense n: images from 16x16 pixels.

    Simonyan & Zisserman 2015, arXiv:1409.1556; the `vgg16` of NIST's Dioptra demos. Settings: see `Transfer`.
    Differs where a side is no multiple of 32: pools round up, so that a 28x28 image keeps one pixel at the end.
    """

    last_conv: ClassVar[str | None] = "backbone.28"
    published: ClassVar[Published] = Published("https://download.pytorch.org/models/vgg16-397923af.pth")
    prefix: ClassVar[str] = "features."
    head: ClassVar[str] = "classifier."
    width: ClassVar[int] = 512

    def backbone(self) -> Backbone:
        from torchvision.models import vgg16

        with torch.device("meta"):  # its unused classifier has 120 million weights to allocate and draw
            layers = vgg16(weights=None).features
        layers = kaiming_normal(layers.to_empty(device=torch.get_default_device()))
        for layer in layers:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        return Backbone(layers.named_children())
