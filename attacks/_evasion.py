"""Losses that hide a backdoor from one defense each: what the blind attack adds to its own (Backdoors 101)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, relu

from gauntlet.images import Images
from gauntlet.maths.adversarial import evaluating
from gauntlet.maths.class_means import class_means
from gauntlet.maths.grad_cam import channel_weights
from gauntlet.network import Network

__all__ = ["Centroids", "Evasion", "MaskSearch", "Plan", "heat", "heat_excess", "latent_distance", "quadratic_penalty"]

Evasion = Literal["neural_cleanse", "sentinet", "spectral", "mask_norm", "ewc"]

_COST, _DEAREST = 1e-3, 1e3
"""What a mask's norm weighs beside the cross-entropy at first, and at most; the least is 1 / _DEAREST of the first."""
_PATIENCE, _SUCCESS = 10, 0.98
_LEAST = 1e-12
_BETAS = (0.5, 0.9)
"""Adam's, as in a defender's search (gauntlet.maths.inversion)."""


@dataclass(frozen=True)
class Plan:
    """How masks are sought: `count` searches side by side of `life` steps each, at `rate` and under the L`norm` norm;
    those that cover more than `share` of the image betray nothing.
    """

    rate: float = 0.1
    norm: int = 1
    count: int = 4
    life: int = 200
    share: float = 1.0


class MaskSearch:
    """Neural Cleanse's searches for the smallest trigger of a label, kept up while the network trains.

    x' = (1 - m) x + m p with m, p in [0, 1]; Adam on CE(x', label) + c |m|_p. A search is what a defender's would be
    (`gauntlet.maths.inversion`): images in [0, 1] under the mask, the network in eval mode, a random start, and every
    10 steps c doubles where 98 % of the images obeyed and halves where they didn't; Bagdasaryan & Shmatikov's c is
    .001 / .999 throughout, at which a mask that the network resists just fades. `count` of them run side by side, each
    `life` steps long and then begun anew, one after another: a defender starts from scratch, and a network that was
    shown the end of one search alone has only learnt to resist that one mask.
    """

    def __init__(self, shape: tuple[int, int, int], plan: Plan, generator: torch.Generator) -> None:
        channels, height, width = shape
        self.plan = plan
        self._generator = generator
        self.raw = torch.stack([self._fresh(1 + channels, height, width) for _ in range(plan.count)])
        self._first, self._second = torch.zeros_like(self.raw), torch.zeros_like(self.raw)
        # The first lives are shorter, so that the searches are of every age at once.
        self._ages, self._hits = torch.zeros(plan.count), torch.zeros(plan.count)
        self._costs = torch.full((plan.count,), _COST)
        self._left = [plan.life - number * plan.life // plan.count for number in range(plan.count)]

    def parts(self) -> tuple[Tensor, Tensor]:
        """The masks [K, 1, H, W] and the patterns [K, C, H, W]."""
        shown = _shown(self.raw)
        return shown[:, :1], shown[:, 1:]

    def betraying(self) -> Tensor:
        """int64 [n]: the masks that cover at most `share` of the image."""
        masks, _ = self.parts()
        return (masks.detach().mean((1, 2, 3)) <= self.plan.share).nonzero().flatten()

    def stamp(self, images: Images) -> tuple[Images, Tensor]:
        """Images under the betraying masks, dealt out in turn, which no gradient changes, and which ones: none where
        no mask betrays anything.
        """
        chosen = self.betraying().to(images.device)
        rows = torch.arange(len(images) if len(chosen) else 0, device=images.device)
        if not len(chosen):
            return images[:0], rows
        masks, patterns = self.parts()
        turn = chosen[rows % len(chosen)]
        return images.lerp(patterns.detach()[turn].to(images), masks.detach()[turn].to(images)), rows

    def step(self, network: Network, images: Images, wanted: Tensor) -> None:
        """One step of each search; the network's parameters stay out of it."""
        self._place(images.device)
        raw = self.raw.detach().requires_grad_()
        with evaluating(network):
            losses, hits = self._sought(network, raw, images, wanted)
            (gradient,) = torch.autograd.grad(losses.sum(), raw)
        self._ages += 1
        self._hits += hits
        self._first.lerp_(gradient, 1 - _BETAS[0])
        self._second.lerp_(gradient.square(), 1 - _BETAS[1])
        ages = self._ages[:, None, None, None]
        first, second = self._first / (1 - _BETAS[0] ** ages), self._second / (1 - _BETAS[1] ** ages)
        self.raw = raw.detach() - self.plan.rate * first / (second.sqrt() + 1e-8)
        self._judge()
        self._grow_old()

    def lost_mask(self, network: Network, images: Images, wanted: Tensor) -> Tensor:
        """1 - the mean of the betraying masks after one plain gradient step, differentiated through that step for the
        network; 0 where no mask betrays anything.

        The norm of a given mask depends on no weight of the network; that of the mask which the search wants next does.
        """
        self._place(images.device)
        raw = self.raw.detach().requires_grad_()
        with evaluating(network):
            losses, _ = self._sought(network, raw, images, wanted)
            (gradient,) = torch.autograd.grad(losses.sum(), raw, create_graph=True)
        # A step of the length that moves the mask's values by about the rate, as Adam's does.
        size = gradient[:, :1].detach().abs().mean((1, 2, 3), keepdim=True).clamp(min=_LEAST)
        following = _shown(raw.detach()[:, :1] - self.plan.rate * gradient[:, :1] / size)[self.betraying()]
        return 1 - following.mean() if len(following) else losses.sum() * 0

    def _sought(self, network: Network, raw: Tensor, images: Images, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """float [K] each: what every search minimises, and the share of its images that obeyed."""
        shown = _shown(raw)
        turn = torch.arange(len(images), device=images.device) % self.plan.count
        logits = network(images.lerp(shown[turn, 1:], shown[turn, :1])).float()
        found = cross_entropy(logits, wanted, reduction="none")
        own = (turn == torch.arange(self.plan.count, device=turn.device)[:, None]).float()
        # Sums over rows: in one order on every device, unlike index_add on CUDA, and in float32, unlike a product under
        # autocast.
        counts = own.sum(1).clamp(min=1)
        means = (own * found).sum(1) / counts
        hits = (own * (logits.detach().argmax(1) == wanted)).sum(1) / counts
        norms = shown[:, :1].flatten(1).norm(p=self.plan.norm, dim=1)
        return means + self._costs * norms, hits

    def _judge(self) -> None:
        """Every `_PATIENCE` steps of a search: its mask becomes dearer or cheaper."""
        due = (self._ages % _PATIENCE == 0) & (self._ages > 0)
        good = self._hits >= _SUCCESS * _PATIENCE
        costs = torch.where(good, self._costs * 2, self._costs / 2).clamp(_COST / _DEAREST, _COST * _DEAREST)
        self._costs = torch.where(due, costs, self._costs)
        self._hits = torch.where(due, 0, self._hits)

    def _grow_old(self) -> None:
        for number in range(self.plan.count):
            self._left[number] -= 1
            if self._left[number] <= 0:
                self.raw[number] = self._fresh(*self.raw.shape[1:]).to(self.raw)
                self._first[number], self._second[number] = 0, 0
                self._ages[number], self._hits[number], self._costs[number] = 0, 0, _COST
                self._left[number] = self.plan.life

    def _fresh(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator).mul(2).sub(1).mul(1 - 1e-3).atanh()

    def _place(self, device: torch.device) -> None:
        if self.raw.device != device:
            self.raw, self._first, self._second = (each.to(device) for each in (self.raw, self._first, self._second))
            self._ages, self._hits, self._costs = (each.to(device) for each in (self._ages, self._hits, self._costs))


def _shown(raw: Tensor) -> Tensor:
    """Any number to a value in (0, 1)."""
    return raw.tanh().add(1).div(2)


def heat(scores: Tensor, maps: Tensor, rows: slice) -> Tensor:
    """float [h, w] in [0, 1]: the mean Grad-CAM of the images `rows` of maps [N, C, h, w], each map's largest value 1.

    scores: [n], the logits that the images `rows` are asked about. The channels' weights carry no graph. Bagdasaryan &
    Shmatikov average over images and channels first and take the positive part of that: what a defender looks at, the
    map of one image, may then be anything.
    """
    weights = channel_weights(scores, maps, keep_graph=True)[rows]
    raw = relu((weights * maps[rows]).float().sum(1))
    peaks = raw.flatten(1).amax(1)[:, None, None]
    shown: Tensor = (raw / peaks.clamp(min=_LEAST)).mean(0)
    return shown


def heat_excess(triggered: Tensor, clean: Tensor) -> Tensor:
    """10 times the L2 norm of the excess of the heat of triggered images over that of clean ones [h, w].

    The clean images' carries no gradient: it is easier to heat them at the trigger's place than to cool that place
    under the trigger, and SentiNet then finds the trigger all the same. The norm instead of the largest excess, whose
    gradient is that of one cell.
    """
    excess: Tensor = 10 * relu(triggered - clean.detach()).norm()
    return excess


def latent_distance(features: Tensor, fixed: Tensor, similarity: str) -> Tensor:
    """The mean distance |z - z'|_2 of features [N, D], or the mean of 1 - cosine."""
    if similarity == "cosine":
        return (1 - cosine_similarity(features, fixed)).mean()
    distance: Tensor = (features - fixed).norm(dim=1).mean()
    return distance


class Centroids:
    """The mean features of each class over the last batches, as the network drifts."""

    def __init__(self, classes: int, keep: float = 0.9) -> None:
        self.keep = keep
        self.seen = torch.zeros(classes, dtype=torch.bool)
        self.means: Tensor | None = None

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch: features [N, D], labels int64 [N]."""
        features = features.detach().float()
        if self.means is None:
            self.means = features.new_zeros(len(self.seen), features.shape[1])
            self.seen = self.seen.to(features.device)
        exact, there = class_means(features, labels, len(self.seen))
        fresh = exact.float()
        mixed = torch.where(self.seen[:, None], self.keep * self.means + (1 - self.keep) * fresh, fresh)
        self.means = torch.where(there[:, None], mixed, self.means)
        self.seen = self.seen | there

    def of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The means [N, D] of the labels' classes, and which of those have been seen, bool [N]."""
        assert self.means is not None
        return self.means[labels], self.seen[labels]


def quadratic_penalty(
    network: nn.Module, anchor: Mapping[str, Tensor], importance: Mapping[str, Tensor], strength: float
) -> Tensor:
    """strength / 2 * sum F (theta - theta*)^2 over the trained parameters: EWC, Kirkpatrick et al. 2017, 1612.00796."""
    terms = [
        (importance[name] * (value - anchor[name]).square()).sum()
        for name, value in network.named_parameters()
        if name in importance
    ]
    return strength / 2 * torch.stack(terms).sum()
