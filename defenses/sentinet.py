"""SentiNet: the part of an image that the network looks at, pasted on others, carries a trigger's class with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.defense import InputDetector, Scorer
from gauntlet.errors import NotApplicableError
from gauntlet.images import Images, chunks, to_float
from gauntlet.inference import inference
from gauntlet.maths.grad_cam import distinct_maps, salient
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.precision import resolve
from gauntlet.settings import Count
from gauntlet.views import DefenderView

__all__ = ["SentiNet"]

_AT_ONCE = {"cpu": 128, "cuda": 2048}
"""Images a pass: on a CPU, what its caches hold."""
_BINS = 10
"""Intervals of the confidence, in each of which the highest share of fooled images counts."""


@defense
@dataclass(frozen=True)
class SentiNet(InputDetector):
    """Flags an image whose salient region takes clean images along to its class, while noise there leaves them alone.

    Chou, Tramer & Pellegrino 2020, arXiv:1812.00292. The region is where the Grad-CAM of the predicted class, less the
    mean of those of the `rivals` next most likely classes, exceeds `mask` of its largest value. It is pasted on
    `blends` clean images of the reserve: the share that then gets the image's class is its `fooled`, and the mean
    confidence with noise in the region's place is its `inert`. The score is how far `fooled` lies above a parabola in
    `inert`, fitted to the highest of the remaining clean images. Differs from the paper: the other classes are the most
    likely ones of the whole image, where a selective search proposes them by its parts, and their mean is subtracted at
    once instead of one after another; `mask` is 0.3, since 0.15 of a map of 14x14 or 7x7 values is a third of a small
    image (docs/evasion.md); the distance is the vertical one; the threshold is the engine's; an empty map means the
    whole image. One input costs a Grad-CAM and twice `blends` forward passes.
    """

    cost: ClassVar[float] = 1.5

    mask: Annotated[float, Field(gt=0, lt=1)] = 0.3
    rivals: Annotated[int, Field(ge=0)] = 9
    blends: Count = 20

    @property
    def least_reserve(self) -> int:
        """An image to paste on and one to learn from are half of it."""
        return 4

    def scorer(self, view: DefenderView) -> Scorer:
        network = view.victim
        if network.last_conv is None:
            raise NotApplicableError("sentinet looks at the last convolution, and the network has none")
        dtype = resolve(view.recipe, network, view.facts.shape, view.device)
        images = to_float(view.reserve.images().to(view.device))
        size = min(self.blends, len(images) // 2)
        noise = torch.rand(images.shape[1:], generator=view.generator("inert pattern")).to(view.device)
        pasting = Pasting(network, images[:size], noise, self.mask, dtype, self.rivals)
        curve = boundary(*pasting.measured(images[size:]))

        def score(given: Images) -> Tensor:
            fooled, inert = pasting.measured(given)
            return fooled - raised(curve, inert)

        return score


@dataclass(frozen=True, eq=False)
class Pasting:
    """base: the clean images that regions are pasted on, [B, C, H, W]. noise: [C, H, W], the inert pattern."""

    network: Network
    base: Images
    noise: Tensor
    mask: float
    dtype: torch.dtype
    rivals: int = 0

    def measured(self, images: Images) -> tuple[Tensor, Tensor]:
        """float32 [N] each, in [0, 1]: the share of the base that an image's region takes to its class, and the mean
        confidence in any class with noise in the region's place.
        """
        maps, named = distinct_maps(self.network, images, self.rivals, dtype=self.dtype)
        regions = salient(maps, self.mask)
        regions = regions | ~regions.flatten(1).any(1)[:, None, None, None]
        fooled, inert = torch.empty(len(images)), torch.empty(len(images))
        count = len(self.base)
        for part in chunks(len(images), max(1, _AT_ONCE[images.device.type] // count)):
            chances = self._chances(images[part], regions[part])
            hits = chances.argmax(2) == named[part][:, None]
            fooled[part] = hits.float().mean(1).cpu()
            inert[part] = self._chances(self.noise[None], regions[part]).amax(2).mean(1).cpu()
        return fooled.to(images.device), inert.to(images.device)

    def _chances(self, source: Images, regions: Tensor) -> Tensor:
        """float32 [n, B, classes]: the predictions for the base images with the source in n regions [n, 1, H, W]."""
        pasted = torch.where(regions[:, None], source[:, None], self.base[None]).flatten(0, 1)
        with inference(self.network, source.device, self.dtype):
            logits = self.network(pasted.contiguous(memory_format=torch.channels_last))
        chances: Tensor = logits.float().softmax(1)
        return chances.view(len(regions), len(self.base), -1)


def boundary(fooled: Tensor, inert: Tensor) -> Tensor:
    """float64 [3]: a parabola (constant first) through the highest `fooled` in each tenth of the range of `inert`.

    Least squares, the smallest one where fewer than three intervals hold an image. fooled, inert: [N], N >= 1.
    """
    fooled, inert = fooled.double().cpu(), inert.double().cpu()
    low, high = inert.min(), inert.max()
    places = ((inert - low) / (high - low).clamp(min=1e-12) * _BINS).long().clamp(max=_BINS - 1)
    points = []
    for place in sorted(set(places.tolist())):
        members = (places == place).nonzero().flatten()
        points.append(members[fooled[members].argmax()])
    chosen = torch.stack(points)
    system = inert[chosen][:, None] ** torch.arange(3)
    curve: Tensor = torch.linalg.lstsq(system, fooled[chosen][:, None], driver="gelsd").solution[:, 0]
    return curve


def raised(curve: Tensor, inert: Tensor) -> Tensor:
    """float32 [N]: the parabola at inert [N], between 0 and 1."""
    powers = inert.double()[:, None] ** torch.arange(3, device=inert.device)
    return (powers @ curve.to(inert.device)).clamp(0, 1).float()
