"""Images once more among other companions: what judges each by itself gives the same (a batch is all clean or all
triggered, so that whoever looks at the batch knows which).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.errors import GauntletError

__all__ = ["Mixture", "mixed_up"]

_CHOSEN = 8
"""Images that are tried once more, and as many companions."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A few images of a set in a batch whose other images are all one and the same, which moves every statistic of it.

    chosen: int64 [n], their positions in the set. places: int64 [n], where they stand in the batch. batch: uint8
    [2n, C, H, W]. among_their_own: the same with other images of their set for companions.
    """

    chosen: Tensor
    places: Tensor
    batch: Tensor
    among_their_own: Tensor

    @classmethod
    def of(cls, images: Tensor, others: Tensor, generator: torch.Generator) -> Mixture:
        """Of a set [N, C, H, W] and a companion from `others`, each of at least one image; uint8, on the CPU."""
        count = min(_CHOSEN, len(images))
        drawn = torch.randperm(len(images), generator=generator)
        chosen, places = drawn[:count], torch.randperm(2 * count, generator=generator)[:count]
        companion = others[int(torch.randint(len(others), (), generator=generator))]
        own = images[drawn[torch.arange(2 * count) % len(drawn)]]
        batches = companion.repeat(2 * count, 1, 1, 1), own
        for batch in batches:
            batch[places] = images[chosen]
        return cls(chosen, places, *batches)


def mixed_up(name: str) -> GauntletError:
    """The error for a defense that looks at the batch."""
    return GauntletError(
        f"{name} judges images by what else is in the batch; each is due to be judged by itself, since a batch is all "
        "clean or all triggered"
    )
