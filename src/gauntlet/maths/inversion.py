"""Trigger inversion: the smallest mask and pattern that lead every image to a class, for many classes at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet.images import Images, chunks
from gauntlet.maths.gradients import image_gradients
from gauntlet.out_of_memory import parts
from gauntlet.precision import autocast

__all__ = ["Inverted", "Search", "anomaly_index", "batches", "invert"]

_AT_ONCE = {"cpu": 512, "cuda": 8192}
"""Images a pass, over all the classes of a group: what bounds the memory of a task of many classes."""
_VALUES = {"cpu": 512 * 28 * 28, "cuda": 1 << 26}
"""Values a pass: on a CPU, larger images in as many cost twice the time (docs/defenses.md)."""
_COSTS = 1e6
"""How far, as a factor, a mask's cost may move from where it began: a class that any mask reaches doubles for ever."""

_BETAS = (0.5, 0.9)
"""Adam's: with its usual ones the moments of a dearer or cheaper mask lag behind, and norms end 10 to 20 % higher."""


@dataclass(frozen=True)
class Search:
    """How a trigger is sought.

    steps of Adam at learning_rate, each on `batch` images; a mask's L1 norm weighs `cost` beside the cross-entropy.
    After every `patience` steps a class whose triggered images came out as wanted in at least a share `success` has
    its cost multiplied by `factor`, and otherwise divided by it.
    """

    steps: int = 500
    batch: int = 32
    learning_rate: float = 0.1
    cost: float = 1e-3
    factor: float = 2.0
    success: float = 0.98
    patience: int = 10


@dataclass(frozen=True, eq=False)
class Inverted:
    """For K classes, on the images' device: masks [K, 1, H, W] and patterns [K, C, H, W] in [0, 1]; norms [K], the L1
    norms of the masks in pixels; reached: bool [K], False where no mask led enough images to the class: its mask and
    pattern are the last ones, and its norm is that of the largest mask there is, H * W.
    """

    masks: Tensor
    patterns: Tensor
    norms: Tensor
    reached: Tensor


def batches(count: int, search: Search, generator: torch.Generator) -> Tensor:
    """int64 [steps, batch]: which of `count` images each step takes, one random order of them all after another."""
    wanted = search.steps * search.batch
    orders = [torch.randperm(count, generator=generator) for _ in range(-(-wanted // count))]
    return torch.cat(orders)[:wanted].view(search.steps, search.batch)


def invert(
    network: nn.Module,
    images: Images,
    classes: Tensor,
    search: Search,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Inverted:
    """The smallest trigger found for each class: images (1 - mask) * image + mask * pattern are taken for it.

    Wang et al. 2019, IEEE S&P, "Neural Cleanse". images: float [N, C, H, W] in [0, 1], N >= 1; classes: int64 [K].
    Every class sees the same batches and starts from the same random mask and pattern, drawn from `generator` (on the
    CPU), so that its result doesn't depend on which classes are sought beside it, but for rounding. Of the masks at the
    end of each `patience` steps, the smallest that reached `success` is kept. The network should be in eval mode; its
    parameters are frozen meanwhile. dtype: see `gauntlet.precision`.
    """
    steps = batches(len(images), search, generator).to(images.device)
    start = torch.rand(1 + images.shape[1], *images.shape[2:], generator=generator).to(images.device)
    at_once = min(_AT_ONCE[images.device.type], _VALUES[images.device.type] // images[0].numel())
    size = max(1, at_once // search.batch)
    with _frozen(network), torch.enable_grad(), image_gradients(network):
        groups = parts(
            len(classes), size, lambda part: _invert(network, images, classes[part], start, steps, search, dtype)
        )
    masks, patterns, norms = (torch.cat(each) for each in zip(*groups, strict=True))
    reached = norms.isfinite()
    return Inverted(masks, patterns, norms.where(reached, float(masks[0].numel())), reached)


def _invert(
    network: nn.Module,
    images: Images,
    classes: Tensor,
    start: Tensor,
    steps: Tensor,
    search: Search,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, patterns and norms (infinite where not reached) of one group of classes."""
    raw = _raw(start).expand(len(classes), *start.shape).clone().requires_grad_()
    optimizer = torch.optim.Adam([raw], search.learning_rate, betas=_BETAS)
    wanted = classes.to(images.device).repeat_interleave(search.batch)
    costs = torch.full((len(classes),), search.cost, device=images.device)
    norms = torch.full_like(costs, float("inf"))
    best = raw.detach().clone()
    for part in chunks(len(steps), search.patience):
        hits = torch.zeros_like(costs)
        for step in steps[part]:
            trigger = _shown(raw)
            masks, patterns = trigger[:, None, :1], trigger[:, None, 1:]
            batch = images[step].lerp(patterns, masks).flatten(0, 1).contiguous(memory_format=torch.channels_last)
            with autocast(images.device, dtype):
                logits = network(batch).float()
            losses = cross_entropy(logits, wanted, reduction="sum") / search.batch
            loss = losses + (costs * masks.flatten(1).sum(1)).sum()
            (raw.grad,) = torch.autograd.grad(loss, raw)
            optimizer.step()
            hits += (logits.argmax(1) == wanted).view(len(classes), -1).float().mean(1)
        good = hits >= search.success * len(steps[part])
        with torch.no_grad():
            sizes = _shown(raw[:, :1]).flatten(1).sum(1)
        better = good & (sizes < norms)
        norms = torch.where(better, sizes, norms)
        best = torch.where(better[:, None, None, None], raw.detach(), best)
        costs = torch.where(good, costs * search.factor, costs / search.factor)
        costs = costs.clamp(search.cost / _COSTS, search.cost * _COSTS)
    trigger = _shown(torch.where(norms.isfinite()[:, None, None, None], best, raw.detach()))
    return trigger[:, :1], trigger[:, 1:], norms


def _shown(raw: Tensor) -> Tensor:
    """Any number to a value in (0, 1), as in the paper by the hyperbolic tangent."""
    return raw.tanh().add(1).div(2)


def _raw(shown: Tensor) -> Tensor:
    return shown.mul(2).sub(1).mul(1 - 1e-3).atanh()


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """No parameter takes part in the gradients during the block; each is as it was afterwards."""
    asked = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in asked:
            parameter.requires_grad_(requires_grad)


def anomaly_index(norms: Tensor, among: Tensor | None = None) -> Tensor:
    """float64 [K]: by how many deviations each norm lies below the median of all; negative above it. Median and
    deviation are those of the norms `among`, [M >= 1], where they are given.

    The deviation is the median absolute deviation, times 1.4826 as for a normal distribution (Wang et al. 2019, after
    Hampel 1974). Where it is 0 since more than half of the norms are equal, it is the mean absolute deviation times
    1.2533 (Iglewicz & Hoaglin 1993); where all are equal, every index is 0.
    """
    values = norms.double()
    ordinary = values if among is None else among.double()
    median = ordinary.quantile(0.5)
    distances = (median - ordinary).abs()
    spread = 1.4826 * distances.quantile(0.5)
    if spread == 0:
        spread = 1.2533 * distances.mean()
    below = median - values
    return below / spread if spread else below
