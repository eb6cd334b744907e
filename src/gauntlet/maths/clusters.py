"""Clusters in a cloud of points: reducing its dimensions, k-means, and how well the clusters are set apart."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gauntlet.images import chunks
from gauntlet.maths.spectral import top_directions

__all__ = ["fast_ica", "members", "pca", "silhouette", "two_means"]

_DISTANCES = 1 << 24
"""Pairwise distances that are held at a time."""
_NEGLIGIBLE = 1e-5
"""Of the largest standard deviation: what float32 can't tell from none."""
_ROUNDING = 1e-6
"""Of the largest value: how far float32 may miss the mean of equal values."""


def members(labels: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each class that occurs, in ascending order, with the positions [n] of its samples. labels: int64 [N] from 0."""
    order, end = labels.argsort(stable=True), 0
    for label, count in enumerate(torch.bincount(labels).tolist()):
        start, end = end, end + count
        if count:
            yield label, order[start:end]


def pca(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The points in the `count` directions in which they vary most: float [N, D] to [N, min(count, N, D)], centred.

    Any device. Pearson 1901. See `top_directions` for the exactness; the generator is read where it draws.
    """
    if not len(points):
        return points.new_zeros(0, 0)
    centred = points - points.mean(0)
    # Equal points must stay equal: what is left of them is rounding, which a clustering would find structure in.
    centred.masked_fill_(centred.abs() <= _ROUNDING * points.abs().amax(0), 0)
    return centred @ top_directions(centred, count, generator).T


def fast_ica(
    points: Tensor, count: int, generator: torch.Generator, *, iterations: int = 200, tolerance: float = 1e-4
) -> Tensor:
    """Independent components of the points, each of mean 0 and variance 1: float [N, D] to [N, at most `count`].

    Any device. FastICA with symmetric decorrelation and the log cosh contrast, after whitening by `pca`: Hyvarinen &
    Oja 2000, Neural Networks 13 (4-5). Directions without variance are left out; where there are no others, one
    column of zeros remains. It ends when no component turns by more than `tolerance` (1 - |cosine|), or after
    `iterations`.
    """
    reduced = pca(points, count, generator)
    if not reduced.any():
        return reduced[:, :1]
    deviation = reduced.square().mean(0).sqrt()
    varies = deviation > _NEGLIGIBLE * deviation.max()
    white = reduced[:, varies] / deviation[varies]
    start = torch.randn(white.shape[1], white.shape[1], generator=generator, device=generator.device)
    turn = _orthogonal(start.to(white))
    for _ in range(iterations):
        response = (white @ turn.T).tanh_()
        slope = 1 - response.square().mean(0)
        turned = _orthogonal(response.T @ white / len(white) - slope[:, None] * turn)
        change = 1 - (turned * turn).sum(1).abs()
        turn = turned
        if change.max() < tolerance:
            break
    return white @ turn.T


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix."""
    left, _, right = torch.linalg.svd(matrix)
    nearest: Tensor = left @ right
    return nearest


def two_means(points: Tensor, *, iterations: int = 300) -> Tensor:
    """int64 [N], the cluster of each point, by k-means with k = 2.

    Lloyd's algorithm from the best split along each axis, side by side, and the best result. points: float [N, D] with
    N >= 1, any device. A split along an axis is the exact two-means of its coordinates. From
    random starts k-means missed a binary component among nine noisy ones in most runs; the axes of `pca` and of
    `fast_ica` are what such a component lies along. Nothing is drawn at random. Points that are all equal make one
    cluster, 0.
    """
    centred = points - points.mean(0)
    second = _axis_splits(centred)
    for _ in range(iterations):
        before, (zeroth, first) = second, _centres(centred, second)
        boundary = (first.square().sum(1) - zeroth.square().sum(1)) / 2
        second = (first - zeroth) @ centred.T > boundary[:, None]
        if torch.equal(second, before):
            break
    zeroth, first = _centres(centred, second)
    sizes = second.sum(1)
    explained = sizes * first.square().sum(1) + (len(points) - sizes) * zeroth.square().sum(1)
    return second[int(explained.argmax())].long()


def _axis_splits(centred: Tensor) -> Tensor:
    """bool [D, N]: for each axis the points above the threshold that leaves the least variance on both sides."""
    ordered, order = centred.T.sort(1)
    below = torch.arange(1, centred.shape[0] + 1, device=centred.device)
    sums = ordered.cumsum(1)
    # The coordinates sum to 0, so both sides have the same sum but for its sign. Equal values stay together.
    explained = sums.square() * (1 / below + 1 / (len(centred) - below).clamp(min=1))
    explained[:, :-1].masked_fill_(ordered[:, 1:] == ordered[:, :-1], -1)
    explained[:, -1:] = 0
    place = explained.argmax(1, keepdim=True)
    second = torch.empty(order.shape, dtype=torch.bool, device=centred.device)
    return second.scatter_(1, order, below > place + 1)


def _centres(centred: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """[R, D] each: the means of the points outside and inside of `second`, bool [R, N]; of none, the middle."""
    sums, sizes = second.to(centred.dtype) @ centred, second.sum(1, keepdim=True)
    return -sums / (len(centred) - sizes).clamp(min=1), sums / sizes.clamp(min=1)


def silhouette(points: Tensor, labels: Tensor) -> float:
    """How well clusters are set apart: the mean over all points of (b - a) / max(a, b), in [-1, 1].

    points: float [N, D], labels: int64 [N] from 0, any device. a: the mean distance to the other points of one's
    cluster; b: the least mean distance to the points of another. A point that is alone counts 0; so does everything
    where there is but one cluster. Rousseeuw 1987, J. Comput. Appl. Math. 20; all pairs are computed, in parts.
    """
    sizes = torch.bincount(labels)
    if (sizes > 0).sum() < 2:
        return 0.0
    belongs = torch.nn.functional.one_hot(labels, len(sizes)).to(points.dtype)
    total = points.new_zeros(())
    for part in chunks(len(points), max(1, _DISTANCES // len(points))):
        distances = torch.cdist(points[part], points, compute_mode="donot_use_mm_for_euclid_dist")
        sums = distances @ belongs
        own = labels[part, None]
        inside = (sums.gather(1, own) / (sizes[own] - 1).clamp(min=1))[:, 0]
        outside = (sums / sizes).scatter(1, own, torch.inf).nan_to_num(nan=torch.inf).amin(1)
        widths = (outside - inside) / torch.maximum(inside, outside).clamp(min=torch.finfo(points.dtype).tiny)
        total = total + widths.where(sizes[labels[part]] > 1, 0).sum()
    return float(total / len(points))
