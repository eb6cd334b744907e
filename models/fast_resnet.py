"""A small whitened residual network that trains in minutes where there is no GPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from gauntlet.architecture import Architecture
from gauntlet.facts import TaskFacts
from gauntlet.layers import require_side
from gauntlet.plugin import model, name_of
from gauntlet.settings import Count

__all__ = ["FastResNet", "Whitening"]

_PATCHES = 1 << 19
"""As many patches of the first batch, about, as the covariance is estimated from: 500 images of 32x32 pixels."""


class Whitening(nn.Module):
    """A fixed convolution whose outputs are uncorrelated: the principal directions of the patches, and their negatives.

    Its filters come from the first batch that it is trained on, and belong to the weights from then on: a copy or a
    loaded network keeps them whatever it is trained on later. Before, they are random, so that a network without any
    training works too.
    """

    filters: Tensor
    seen: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        patch = channels * size * size
        self.register_buffer("filters", torch.randn(2 * patch, channels, size, size) / patch**0.5)
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))
        self.bias = nn.Parameter(torch.zeros(2 * patch))
        # What `seen` says, where asking doesn't wait for the device at every step.
        self._ready = False

    def forward(self, images: Tensor) -> Tensor:
        if self.training and not self._ready and not images.is_meta:
            self._settle(images.detach())
        return functional.conv2d(images, self.filters, self.bias)

    @torch.no_grad()
    def _settle(self, images: Tensor) -> None:
        if not bool(self.seen):
            self.filters.copy_(_principal(images.float(), self.filters.shape[-1]))
            self.seen.fill_(True)
        self._ready = True

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # Other weights may be those of a network that has seen no batch.
        self._ready = False
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _principal(images: Tensor, size: int) -> Tensor:
    """[2 P, C, size, size]: eigenvectors of the patches' covariance, scaled to unit variance, and their negatives."""
    channels, height, width = images.shape[1:]
    images = images[: max(1, _PATCHES // (height * width))]
    patches = functional.unfold(images, size).transpose(1, 2).reshape(-1, channels * size * size).double()
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    # An eigenvector's sign is the library's choice: the same one everywhere.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    # Directions that hardly vary would be blown up to noise.
    scaled = (directions * largest.sign() / (variances + 5e-4).sqrt()).T.reshape(-1, channels, size, size).float()
    return torch.cat([scaled, -scaled])


class _Stage(nn.Module):
    """A 3x3 convolution, pooled at once so that what follows sees a quarter of the pixels; then a residual one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        for layer in (self.conv1, self.conv2):
            # Its first filters begin by handing their input on, the others as they were drawn.
            nn.init.dirac_(layer.weight[: layer.in_channels])

    def forward(self, images: Tensor) -> Tensor:
        active = functional.gelu(self.bn1(functional.max_pool2d(self.conv1(images), 2)))
        return active + functional.gelu(self.bn2(self.conv2(active)))


@model
@dataclass(frozen=True)
class FastResNet(Architecture):
    """A whitening layer and three residual stages: 2.0 million parameters on CIFAR-10, images from 9x9 pixels.

    After Jordan 2024, arXiv:2404.00498, and Page 2018, "How to train your ResNet". Differs from them: a residual
    convolution in every stage, affine batch normalisation, a whitening bias that is trained to the end, no augmentation
    at test time (it would move the trigger). narrow, middle, wide: channels of the stages.
    """

    feature_layer: ClassVar[str] = "flatten"
    last_conv: ClassVar[str | None] = "stage3.conv2"

    narrow: Count = 64
    middle: Count = 256
    wide: Count = 256

    def check(self, facts: TaskFacts) -> None:
        require_side(name_of(self), facts, 9)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        whitening = Whitening(shape[0], 2)
        return nn.Sequential(
            OrderedDict(
                whitening=whitening,
                gelu=nn.GELU(),
                stage1=_Stage(len(whitening.filters), self.narrow),
                stage2=_Stage(self.narrow, self.middle),
                stage3=_Stage(self.middle, self.wide),
                pool=nn.AdaptiveMaxPool2d(1),
                flatten=nn.Flatten(),
                output=nn.Linear(self.wide, classes),
            )
        )
