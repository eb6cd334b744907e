"""ResNet-50, pretrained on ImageNet where its weights can be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gauntlet.plugin import model
from gauntlet.transfer import Backbone, Transfer
from gauntlet.weights import Published

__all__ = ["ResNet50"]


@model
@dataclass(frozen=True)
class ResNet50(Transfer):
    """torchvision's ResNet-50 without its classifier, pooled, Dense 1024 ReLU, Dense n: images from 16x16 pixels.

    He et al. 2016, arXiv:1512.03385; the `resnet50` of NIST's Dioptra demos. Settings: see `Transfer`.
    """

    last_conv: ClassVar[str | None] = "backbone.layer4.2.conv3"
    published: ClassVar[Published] = Published("https://download.pytorch.org/models/resnet50-0676ba61.pth")
    head: ClassVar[str] = "fc."
    width: ClassVar[int] = 2048

    def backbone(self) -> Backbone:
        from torchvision.models import resnet50

        children = resnet50(weights=None).named_children()
        return Backbone((name, layer) for name, layer in children if name not in {"avgpool", "fc"})
