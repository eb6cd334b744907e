"""Random numbers for each image: fresh ones from a generator, or those that the image's own pixels give."""

from __future__ import annotations

import torch
from torch import Tensor

from gauntlet.images import Images, to_uint8

__all__ = ["chance_of", "fresh", "uniform", "whole"]

_GOLDEN = -0x61C8864680B583EB
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def fresh(count: int, chances: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """float64 [count, chances] in [0, 1), drawn from the generator, on `device`."""
    drawn = torch.rand(count, chances, generator=generator, device=generator.device, dtype=torch.float64)
    return drawn.to(device, non_blocking=True)


def chance_of(images: Images, chances: int) -> Tensor:
    """float64 [N, chances] in [0, 1) that depend on each image's 8-bit pixels alone: equal images, equal numbers.

    SplitMix64 (Steele, Lea & Flood 2014, OOPSLA) over a sum of pixels by random weights, in whole numbers, so that
    every device gives the same.
    """
    if not chances:
        return torch.empty(len(images), 0, dtype=torch.float64, device=images.device)
    levels = to_uint8(images).flatten(1).long()
    weights = _mixed(torch.arange(1, levels.shape[1] + 1, device=images.device) * _GOLDEN)
    sums = (levels * weights).sum(1, keepdim=True)
    steps = torch.arange(1, chances + 1, device=images.device) * _GOLDEN
    return _shifted(_mixed(sums + steps), 11).double() * 2.0**-53


def uniform(chance: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [0, 1) to numbers in [low, high)."""
    return low + chance * (high - low)


def whole(chance: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Numbers in [0, 1) to whole numbers from low to high, both included; each as likely."""
    return low + (chance * (high - low + 1)).long()


def _mixed(values: Tensor) -> Tensor:
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifted right as if unsigned."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
