"""Normal noise for whole sets of images, drawn by all cores."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from gauntlet.images import chunks

__all__ = ["normal"]

_PART = 1 << 20
"""Values that one generator draws: torch draws them one after another, and lets other threads work meanwhile."""


def normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Independent values of N(0, 1), float32 on the generator's device.

    On a CPU, more than 2**20 values come from several generators, which `generator` seeds: the values are the same for
    any number of threads.
    """
    count = math.prod(shape)
    if generator.device.type != "cpu" or count <= _PART:
        return torch.randn(shape, generator=generator, device=generator.device)
    drawn = torch.empty(count)
    parts = list(chunks(count, _PART))
    seeds = torch.randint(2**62, (len(parts),), generator=generator).tolist()

    def fill(part: slice, seed: int) -> None:
        drawn[part].normal_(generator=torch.Generator().manual_seed(seed))

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(fill, parts, seeds))
    return drawn.view(shape)
