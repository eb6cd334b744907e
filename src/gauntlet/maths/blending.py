"""Images blended with clean ones, and how sure a network stays of them: what STRIP looks at."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from gauntlet.images import Images, chunks
from gauntlet.inference import inference

__all__ = ["blend", "blend_entropies", "entropy"]

_AT_ONCE = {"cpu": 128, "cuda": 2048}
"""Blends a pass: on a CPU, what its caches hold."""


def blend(images: Images, others: Images, own: float, other: float) -> Images:
    """own * images + other * others, clipped to [0, 1]; shapes broadcast."""
    return torch.mul(images, own).add_(others, alpha=other).clamp_(0, 1)


def entropy(logits: Tensor) -> Tensor:
    """float32 [N] in bits, from 0 to log2(classes): the Shannon entropy of the softmax of logits [N, classes]."""
    logs = log_softmax(logits.float(), dim=1)
    return logs.exp().mul_(logs).sum(1).mul_(-1 / math.log(2))


def blend_entropies(
    network: nn.Module, images: Images, pool: Images, *, own: float, other: float, dtype: torch.dtype
) -> Tensor:
    """float32 [N]: the mean entropy, in bits, of the predictions for each image blended with each of the pool.

    images: float [N, C, H, W] in [0, 1]; pool: float [P, C, H, W], P >= 1, on the same device. The network is called in
    the mode that it is in: eval mode judges every image by itself, but for rounding. dtype: see `gauntlet.precision`.
    """
    count = len(pool)
    found = torch.empty(len(images) * count, device=images.device)
    pairs = torch.arange(len(found), device=images.device)
    with inference(network, images.device, dtype):
        for part in chunks(len(found), _AT_ONCE[images.device.type]):
            mixed = blend(images[pairs[part] // count], pool[pairs[part] % count], own, other)
            found[part] = entropy(network(mixed.contiguous(memory_format=torch.channels_last)))
    return found.view(-1, count).mean(1)
