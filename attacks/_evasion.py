"""Losses that hide a backdoor from one defense each: what the blind attack adds to its own (seeds.md 2.6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, relu

from gauntlet.images import Images
from gauntlet.maths.adversarial import evaluating
from gauntlet.maths.grad_cam import channel_weights
from gauntlet.network import Network

__all__ = ["Centroids", "Evasion", "MaskSearch", "heat", "heat_excess", "latent_distance", "quadratic_penalty"]

Evasion = Literal["neural_cleanse", "sentinet", "spectral", "mask_norm", "ewc"]

_CLASS_SHARE, _NORM_SHARE = 0.999, 0.001
_LEAST = 1e-12


class MaskSearch:
    """Neural Cleanse's search for the smallest trigger of a label, kept up while the network trains.

    x' = (1 - m) x + m p with m, p in [0, 1]; Adam on .999 CE(x', label) + .001 |m|_p. The search sees what a defender's
    would: the images in [0, 1] under the mask, and the network in eval mode.
    """

    def __init__(self, shape: tuple[int, int, int], rate: float, norm: int, generator: torch.Generator) -> None:
        channels, height, width = shape
        start = torch.rand(1 + channels, height, width, generator=generator)
        self.norm = norm
        self.rate = rate
        self.raw = start.mul(2).sub(1).mul(1 - 1e-3).atanh()
        self._optimizer: torch.optim.Optimizer | None = None

    def parts(self) -> tuple[Tensor, Tensor]:
        """The mask [1, H, W] and the pattern [C, H, W]."""
        shown = self.raw.tanh().add(1).div(2)
        return shown[:1], shown[1:]

    def stamp(self, images: Images) -> Images:
        """The images under the mask as it is now, which no gradient changes."""
        mask, pattern = self.parts()
        return images.lerp(pattern.detach(), mask.detach())

    def step(self, network: Network, images: Images, wanted: Tensor) -> None:
        """One step of the search; the network's parameters stay out of it."""
        raw = self._on(images.device)
        with evaluating(network):
            (raw.grad,) = torch.autograd.grad(self._sought(network, images, wanted), raw)
        assert self._optimizer is not None
        self._optimizer.step()
        raw.grad = None

    def lost_mask(self, network: Network, images: Images, wanted: Tensor) -> Tensor:
        """1 - the mean of the mask after one plain gradient step, differentiated through that step for the network.

        The norm of a given mask depends on no weight of the network; that of the mask which the search wants next does.
        """
        raw = self._on(images.device)
        with evaluating(network):
            (gradient,) = torch.autograd.grad(self._sought(network, images, wanted), raw, create_graph=True)
        # A step of the length that moves the mask's values by about the rate, as Adam's does.
        size = gradient[:1].detach().abs().mean().clamp(min=_LEAST)
        following = raw.detach()[:1] - self.rate * gradient[:1] / size
        return 1 - following.tanh().add(1).div(2).mean()

    def _sought(self, network: Network, images: Images, wanted: Tensor) -> Tensor:
        mask, pattern = self.parts()
        found = cross_entropy(network(images.lerp(pattern, mask)).float(), wanted)
        sought: Tensor = _CLASS_SHARE * found + _NORM_SHARE * mask.norm(p=self.norm)
        return sought

    def _on(self, device: torch.device) -> Tensor:
        if self._optimizer is None:
            self.raw = self.raw.to(device).requires_grad_()
            self._optimizer = torch.optim.Adam([self.raw], self.rate)
        return self.raw


def heat(scores: Tensor, maps: Tensor, rows: slice) -> Tensor:
    """float [h, w] in [0, 1]: Grad-CAM averaged over the images `rows` of maps [N, C, h, w], largest value 1.

    scores: [n], the logits that the images `rows` are asked about. The channels' weights carry no graph.
    """
    weights = channel_weights(scores, maps, keep_graph=True)[rows]
    raw = relu((weights * maps[rows]).float().mean((0, 1)))
    return raw / raw.max().clamp(min=_LEAST)


def heat_excess(triggered: Tensor, clean: Tensor) -> Tensor:
    """10 times the largest excess of the heat of triggered images over that of clean ones [h, w]."""
    return 10 * relu(triggered - clean).max()


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
        sums = torch.zeros_like(self.means).index_add_(0, labels, features)
        counts = torch.bincount(labels, minlength=len(self.seen))
        there = counts > 0
        fresh = sums / counts.clamp(min=1)[:, None]
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
