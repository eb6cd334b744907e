"""Images blended with clean ones, and how sure a network stays of them: what STRIP looks at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from gauntlet.images import Images, chunks
from gauntlet.inference import inference
from gauntlet.network import Network

__all__ = ["blend", "blend_entropies", "entropy"]

_Map: TypeAlias = Callable[[Tensor], Tensor]

_AT_ONCE = {"cpu": 160, "cuda": 2048}
"""Blends a pass: on a CPU, what its caches hold."""


def blend(images: Images, others: Images, own: float, other: float) -> Images:
    """own * images + other * others, clipped to [0, 1]; shapes broadcast."""
    return torch.add(images * own, others, alpha=other).clamp_(0, 1)


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
    Where nothing can be clipped, what a network begins with up to its first ReLU or pool is computed for each image and
    each of the pool, and not for each pair: that of a blend is the blend of theirs.
    """
    at_once = _AT_ONCE[images.device.type]
    found = torch.empty(len(images), len(pool), device=images.device)
    way = _way(network, own, other)
    with inference(way.first, images.device, dtype), inference(way.rest, images.device, dtype):
        for partners in chunks(len(pool), at_once):
            theirs = _channels_last(way.of_partners(pool[partners]))[None]
            for some in chunks(len(images), at_once):
                mine = _channels_last(way.of_images(images[some]))[:, None]
                each = max(1, at_once // theirs.shape[1])
                pairs = (way.mix(mine[few], theirs).flatten(0, 1) for few in chunks(len(mine), each))
                told = [entropy(way.rest(part.permute(0, 3, 1, 2))) for part in pairs]
                found[some, partners] = torch.cat(told).view(len(mine), -1)
    return found.mean(1)


def _channels_last(maps: Tensor) -> Tensor:
    """[N, C, H, W] to a contiguous [N, H, W, C]."""
    return maps.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class _Way:
    """first, of which something is computed for each image and each partner, how the two are mixed, and what is left
    for the pair.
    """

    first: nn.Module
    of_images: _Map
    of_partners: _Map
    mix: Callable[[Tensor, Tensor], Tensor]
    rest: nn.Module


def _way(network: nn.Module, own: float, other: float) -> _Way:
    ends = _ends(network) if own + other <= 1 else None
    if ends is None:
        same = nn.Identity()
        return _Way(same, same, same, partial(blend, own=own, other=other), network)
    first, rest = ends

    def of_partners(images: Images) -> Tensor:
        # What is neither own nor other is black.
        maps: Tensor = other * first(images) + (1 - own - other) * first(torch.zeros_like(images[:1]))
        return maps

    return _Way(first, lambda images: own * first(images), of_partners, torch.add, rest)


def _ends(network: nn.Module) -> tuple[nn.Sequential, nn.Sequential] | None:
    """The convolutions and normalisations, affine all, that a Sequential begins with, and the layers after them; None
    where it begins with something else, or somebody listens.
    """
    body = network.body if isinstance(network, Network) else network
    if type(body) is not nn.Sequential:
        return None
    affine = list(takewhile(_is_affine, body))
    if not any(type(layer) is nn.Conv2d for layer in affine):
        return None
    first = [network.normalise, *affine] if isinstance(network, Network) else affine
    if any(layer._forward_hooks or layer._forward_pre_hooks for layer in (network, body, *first)):
        return None
    return nn.Sequential(*first), body[len(affine) :]


def _is_affine(layer: nn.Module) -> bool:
    if type(layer) is nn.BatchNorm2d:
        return not layer.training and layer.running_var is not None
    return type(layer) is nn.Conv2d
