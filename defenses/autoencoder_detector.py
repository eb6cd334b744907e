"""An autoencoder that has seen clean images only: what it can't draw again is suspicious."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pad

from gauntlet.defense import InputDetector, Scorer
from gauntlet.images import Images
from gauntlet.network import Network
from gauntlet.objective import Batch, Objective
from gauntlet.out_of_memory import parts
from gauntlet.plugin import defense
from gauntlet.precision import autocast, resolve
from gauntlet.recipe import Recipe
from gauntlet.settings import Count, Positive
from gauntlet.views import DefenderView

__all__ = ["Autoencoder", "AutoencoderDetector"]

_AT_ONCE = {"cpu": 128, "cuda": 2048}
"""Images a pass: on a CPU, what its caches hold."""
_HALVINGS = 3


@defense
@dataclass(frozen=True)
class AutoencoderDetector(InputDetector):
    """Flags an image that an autoencoder of the clean reserve reconstructs badly.

    An entry of CSAW-HackML-2020; autoencoders as detectors after Meng & Chen 2017, arXiv:1705.09064. Three times a
    convolution of `width` channels and a pool, mirrored, trained on the mean squared error alone for `steps` steps of
    Adam on `batch_size` images, without labels. The score is the mean plus the standard deviation of the squared error
    over an image's values. Differs from the entry: its limit was the training images' own score plus .03, on images
    that the autoencoder had seen; here the engine takes a quantile of unseen clean images.
    """

    cost: ClassVar[float] = 1.0

    width: Count = 32
    steps: Count = 200
    batch_size: Count = 32
    learning_rate: Positive = 2e-3

    def scorer(self, view: DefenderView) -> Scorer:
        network = self._trained(view)
        dtype = resolve(view.recipe, network, view.facts.shape, view.device)

        def score(images: Images) -> Tensor:
            found = torch.empty(len(images), device=images.device)

            def judge(part: slice) -> None:
                batch = images[part].contiguous(memory_format=torch.channels_last)
                errors = (network(batch).float() - batch).square().flatten(1)
                found[part] = errors.mean(1) + errors.std(1, correction=0)

            with torch.inference_mode(), autocast(images.device, dtype):
                parts(len(images), _AT_ONCE[images.device.type], judge)
            return found

        return score

    def _trained(self, view: DefenderView) -> Network:
        channels = view.facts.shape[0]
        with view.seeded("autoencoder", "initialisation"):
            body = Autoencoder(channels, self.width)
        # Pixels as they are: the network's own values are what the error is measured in.
        network = Network(body, [0.0] * channels, [1.0] * channels, "encoder", None).place(view.device)
        recipe = Recipe(
            epochs=self.steps / math.ceil(len(view.reserve) / self.batch_size),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            precision=view.recipe.precision,
        )
        return view.tools.train(
            view.reserve, "autoencoder", recipe=recipe, objective=_Reconstruction(), network=network
        )


class Autoencoder(nn.Module):
    """Images [N, C, H, W] of any size to images of the same shape, in (0, 1), through `width` maps of H/8 x W/8."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        inwards = [channels, *[width] * (_HALVINGS - 1)]
        self.encoder = nn.Sequential(
            *[
                layer
                for before in inwards
                for layer in (nn.Conv2d(before, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            ]
        )
        self.decoder = nn.Sequential(
            *[
                layer
                for _ in range(_HALVINGS)
                for layer in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2))
            ],
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, images: Images) -> Images:
        height, width = images.shape[2:]
        unit = 2**_HALVINGS
        whole = pad(images, (0, -width % unit, 0, -height % unit), mode="replicate")
        drawn: Tensor = self.decoder(self.encoder(whole))
        return drawn[:, :, :height, :width].sigmoid()


class _Reconstruction(Objective):
    """Mean squared error between what comes out and what went in; labels play no part."""

    def loss(self, network: Network, batch: Batch) -> Tensor:
        return mse_loss(network(batch.images).float(), batch.images)
