"""Aggregating the updates of a federation: flat vectors [n, D] in, one vector [D] out; none knows who attacks.

Non-finite updates are the caller's to refuse.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "clipped",
    "cosine_majority",
    "flame",
    "krum_scores",
    "median",
    "median_norm",
    "most_tolerated",
    "multi_krum",
    "noisy",
    "trimmed_mean",
]


def median_norm(updates: Tensor) -> float:
    """The median of the updates' L2 norms, for an even number the mean of the middle two."""
    return float(median(updates.norm(dim=1, keepdim=True)))


def clipped(updates: Tensor, bound: float) -> Tensor:
    """The updates, those longer than `bound` shortened to it. Sun et al. 2019, arXiv:1911.07963."""
    norms = updates.norm(dim=1, keepdim=True)
    factors: Tensor = (bound / norms.clamp(min=torch.finfo(updates.dtype).tiny)).clamp(max=1)
    return updates * factors


def noisy(step: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """The step with Gaussian noise of that standard deviation on every value, drawn on the generator's device."""
    noise = torch.randn(step.shape, generator=generator, device=generator.device)
    return step + deviation * noise.to(step)


def median(updates: Tensor) -> Tensor:
    """The median of each coordinate, for an even number the mean of the middle two.

    Yin et al. 2018, arXiv:1803.01498.
    """
    ordered, size = updates.sort(0).values, len(updates)
    return (ordered[(size - 1) // 2] + ordered[size // 2]) / 2


def trimmed_mean(updates: Tensor, cut: int) -> Tensor:
    """The mean of each coordinate without its `cut` largest and `cut` smallest values, of which at least one must
    remain. Yin et al. 2018, arXiv:1803.01498.
    """
    if not 0 <= 2 * cut < len(updates):
        raise ValueError(f"{cut} values cut at either end leave nothing of {len(updates)}")
    return updates.sort(0).values[cut : len(updates) - cut].mean(0)


def most_tolerated(size: int) -> int:
    """The most attackers among `size` updates that Krum is proved for: 2 f + 2 < n; below 0 under 3 updates."""
    return (size - 3) // 2


def krum_scores(updates: Tensor, assumed: int) -> Tensor:
    """float64 [n]: the sum of the squared distances to an update's n - f - 2 nearest others; small is trusted.

    Blanchard et al. 2017, arXiv:1703.02757, with f = assumed attackers; ValueError unless 2 f + 2 < n.
    """
    size = len(updates)
    if not 0 <= assumed <= most_tolerated(size):
        raise ValueError(f"Krum among {size} updates tolerates 0 to {most_tolerated(size)} attackers, not {assumed}")
    distances = torch.stack([(updates - one).double().square().sum(1) for one in updates])
    distances.fill_diagonal_(torch.inf)
    return distances.sort(1).values[:, : size - assumed - 2].sum(1)


def multi_krum(updates: Tensor, assumed: int, chosen: int) -> Tensor:
    """The mean of the `chosen` updates with the smallest Krum scores; 1 is Krum itself, ties go to the first."""
    best = krum_scores(updates, assumed).argsort(stable=True)[:chosen]
    return updates[best].mean(0)


def cosine_majority(updates: Tensor) -> Tensor:
    """bool [n]: the updates in the cluster of more than half of them by cosine distance; all where there is none.

    HDBSCAN with min_cluster_size n // 2 + 1, so that there is one cluster at most; with fewer than three updates there
    is nothing to cluster.
    """
    from sklearn.cluster import HDBSCAN

    size = len(updates)
    everybody = torch.ones(size, dtype=torch.bool, device=updates.device)
    if size < 3:
        return everybody
    unit = updates.double()
    unit = unit / unit.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    distances = (1 - unit @ unit.T).clamp(min=0).fill_diagonal_(0)
    distances = (distances + distances.T) / 2
    clusters = HDBSCAN(
        min_cluster_size=size // 2 + 1, min_samples=1, allow_single_cluster=True, metric="precomputed", copy=True
    )
    found = torch.from_numpy(np.asarray(clusters.fit(distances.cpu().numpy()).labels_) >= 0).to(updates.device)
    return found if found.any() else everybody


def flame(updates: Tensor) -> tuple[Tensor, float]:
    """The mean of the majority's updates after clipping, and the bound of the clipping, the median norm of all.

    Nguyen et al. 2022, arXiv:2101.02281, algorithm 1 without its noise, whose deviation is a factor of that bound.
    Differs: the cosine distances are those of the updates, not of the networks, which hardly differ in direction.
    """
    bound = median_norm(updates)
    return clipped(updates[cosine_majority(updates)], bound).mean(0), bound
