"""ResNet-18 for large images, pretrained on ImageNet where its weights can be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gauntlet.plugin import model
from gauntlet.transfer import Backbone, Transfer
from gauntlet.weights import Published

__all__ = ["ResNet18ImageNet"]


@model
@dataclass(frozen=True)
class ResNet18ImageNet(Transfer):
    """torchvision's ResNet-18 with a new last layer, fine-tuned as a whole: images from 16x16 pixels, made for 224x224.

    He et al. 2016, arXiv:1512.03385; the ImageNet network of Backdoors 101. Settings: see `Transfer`; frozen is false
    by default, there is no dense layer of 1024, and without weights the network starts from scratch.
    Differs: images are normalised by the task's own channel means and deviations, not by ImageNet's.
    """

    feature_layer: ClassVar[str] = "flatten"
    last_conv: ClassVar[str | None] = "backbone.layer4.1.conv2"
    published: ClassVar[Published] = Published("https://download.pytorch.org/models/resnet18-f37072fd.pth")
    head: ClassVar[str] = "fc."
    width: ClassVar[int] = 512

    frozen: bool = False

    def backbone(self) -> Backbone:
        from torchvision.models import resnet18

        children = resnet18(weights=None).named_children()
        return Backbone((name, layer) for name, layer in children if name not in {"avgpool", "fc"})

    def classifier(self, classes: int) -> dict[str, nn.Module]:
        return {"output": nn.Linear(self.width, classes)}
