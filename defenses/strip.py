"""STRIP: a triggered image keeps its class whatever it is blended with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from gauntlet.defense import InputDetector, Scorer
from gauntlet.images import Images, to_float
from gauntlet.maths.blending import blend_entropies
from gauntlet.plugin import defense
from gauntlet.precision import resolve
from gauntlet.settings import Count, Positive
from gauntlet.views import DefenderView

__all__ = ["Strip"]


@defense
@dataclass(frozen=True)
class Strip(InputDetector):
    """Flags an image of whose class the network stays sure while it is blended with clean images.

    Gao et al. 2019, arXiv:1902.06531. The score is minus the mean entropy, in bits, of the predictions for
    clip(own * image + other * clean image). Differs from the paper: every image is blended with the same clean images,
    not with a draw of its own, so that its score depends on nothing else and images are compared on equal terms; and
    the threshold is a quantile of clean scores, not of a normal distribution fitted to them. `blends` of the reserve,
    at most half, are blended in; the rest sets the threshold, since an image blended with itself keeps its class too.
    """

    cost: ClassVar[float] = 1.0

    false_positive_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    blends: Count = 100
    own: Positive = 1.0
    other: Positive = 1.0

    def learns_from(self, reserve: int) -> int:
        return min(self.blends, reserve // 2)

    def scorer(self, view: DefenderView) -> Scorer:
        network = view.victim
        pool = to_float(view.reserve.images().to(view.device))
        dtype = resolve(view.recipe, network, view.facts.shape, view.device)

        def score(images: Images) -> Tensor:
            return -blend_entropies(network, images, pool, own=self.own, other=self.other, dtype=dtype)

        return score
