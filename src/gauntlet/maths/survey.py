"""Trigger inversion for tasks of many classes: a brief search of all, a full one of few, and what is ordinary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gauntlet.images import Images
from gauntlet.maths.inversion import Inverted, Search, anomaly_index, invert

__all__ = ["Survey", "Surveyed", "brief_search", "survey"]

_AREA_COST = 25.0


@dataclass(frozen=True)
class Survey:
    """How a task of many classes is searched.

    closest: how many of those with the smallest masks are searched in full. ordinary: how many of the others, drawn at
    random, are searched in full too, to say what is ordinary.
    """

    closest: int
    ordinary: int


@dataclass(frozen=True, eq=False)
class Surveyed:
    """found: for every class, of its full search or else of its brief one. full: bool [K], which were searched in full.
    anomaly: float64 [K], of the full searches among the ordinary classes' full ones, and of the brief among all brief.
    """

    found: Inverted
    full: Tensor
    anomaly: Tensor


def brief_search(height: int, width: int) -> Search:
    """The search of all classes on images of that size.

    Of those tried it told targets apart best for its price (docs/defenses.md): few long steps, on few images, of a mask
    that is dear from the start. The cost goes by the share of the image, since a pixel of a small one is more of it.
    """
    return Search(steps=20, batch=8, learning_rate=0.5, cost=_AREA_COST / (height * width), success=0.9, patience=5)


def survey(
    network: nn.Module,
    images: Images,
    classes: int,
    search: Search,
    plan: Survey,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Surveyed:
    """Triggers for the classes 0 to classes - 1, which are more than plan.closest + plan.ordinary; see `invert`.

    The norms of a brief and of a full search don't compare, so that each has its own median and deviation. Those of
    the full ones come from a sample of ordinary classes alone: a median that counted the smallest masks, which were
    chosen as such, would lie too low.
    """
    device = images.device
    every, quick = torch.arange(classes, device=device), brief_search(*images.shape[2:])
    brief = invert(network, images, every, quick, generator=generator, dtype=dtype)
    ascending = brief.norms.argsort(stable=True)
    closest, others = ascending[: plan.closest], ascending[plan.closest :]
    drawn = others[torch.randperm(len(others), generator=generator)[: plan.ordinary].to(device)]
    chosen = torch.cat([closest, drawn])
    found = invert(network, images, chosen, search, generator=generator, dtype=dtype)
    anomaly = anomaly_index(brief.norms)
    anomaly[chosen] = anomaly_index(found.norms, found.norms[plan.closest :])
    full = torch.zeros(classes, dtype=torch.bool, device=device)
    full[chosen] = True
    merged = Inverted(
        brief.masks.index_copy(0, chosen, found.masks),
        brief.patterns.index_copy(0, chosen, found.patterns),
        brief.norms.index_copy(0, chosen, found.norms),
        brief.reached.index_copy(0, chosen, found.reached),
    )
    return Surveyed(merged, full, anomaly)
