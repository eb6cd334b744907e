"""Latent comparison: an input whose features lie far from those of clean images of its predicted class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gauntlet.defense import InputDetector, Scorer
from gauntlet.images import Images, to_float
from gauntlet.maths.class_means import class_means
from gauntlet.network import Network
from gauntlet.out_of_memory import parts
from gauntlet.plugin import defense
from gauntlet.precision import autocast, resolve
from gauntlet.settings import Fraction
from gauntlet.views import DefenderView

__all__ = ["LatentComparison"]

_AT_ONCE = {"cpu": 128, "cuda": 2048}
"""Images a pass: on a CPU, what its caches hold."""


@defense
@dataclass(frozen=True)
class LatentComparison(InputDetector):
    """Flags an image by the Mahalanobis distance of its features from the mean of the class that it is taken for.

    Lee et al. 2018, arXiv:1807.03888, at the last hidden layer: means by class, one covariance for all. Differs from
    the paper: the predicted class's mean instead of the nearest one, since a triggered image is looked for under its
    wrong class; a share `shrinkage` of the covariance is replaced by its mean variance, as a small reserve asks for; no
    noise is added to the input. A class of which the reserve holds no image has the mean of all.
    """

    cost: ClassVar[float] = 0.1

    shrinkage: Fraction = 0.1

    def scorer(self, view: DefenderView) -> Scorer:
        network = view.victim
        dtype = resolve(view.recipe, network, view.facts.shape, view.device)
        images, labels = to_float(view.reserve.images().to(view.device)), view.reserve.labels.to(view.device)
        features, _ = _features(network, images, dtype)
        means = _means(features, labels, view.facts.classes)
        whiten = _whitening(features - means[labels], self.shrinkage)

        def score(given: Images) -> Tensor:
            found, named = _features(network, given, dtype)
            distances: Tensor = torch.linalg.vector_norm((found - means[named]) @ whiten, dim=1)
            return distances.float()

        return score


def _features(network: Network, images: Images, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """float64 [N, D] and the predicted classes."""

    def seen(part: slice) -> tuple[Tensor, Tensor]:
        features, logits = network.features_and_logits(images[part].contiguous(memory_format=torch.channels_last))
        return features.double(), logits.argmax(1)

    with torch.inference_mode(), autocast(images.device, dtype):
        found = parts(len(images), _AT_ONCE[images.device.type], seen)
    features, named = (torch.cat(each).clone() for each in zip(*found, strict=True))
    return features, named


def _means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """float64 [classes, D]; the mean of all for a class without an image."""
    means, there = class_means(features, labels, classes)
    return torch.where(there[:, None], means, features.mean(0))


def _whitening(residuals: Tensor, shrinkage: float) -> Tensor:
    """float64 [D, D]: W with W W' the inverse of the shrunk covariance of residuals [N, D]."""
    size = residuals.shape[1]
    covariance = residuals.T @ residuals / len(residuals)
    spread = float(covariance.diagonal().mean()) or 1.0
    identity = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    shrunk = (1 - shrinkage) * covariance + shrinkage * spread * identity
    lower = torch.linalg.cholesky(shrunk)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse.T
