"""The directions in which a cloud of points spreads most, and how far each point lies out along the first."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["spectral_scores", "top_directions"]

_EXACT = 1024
"""Columns up to which the whole spectrum is taken; beyond, its cost (their cube) exceeds that of the iteration."""
_OVERSAMPLED = 10
_ITERATIONS = 100
_TOLERANCE = 1e-6


def top_directions(matrix: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The right singular vectors of the `count` largest singular values, largest first, each of an arbitrary sign.

    matrix: float [N, D], any device; the result is [min(count, N, D), D] with orthonormal rows. Up to 1,024 columns
    they are eigenvectors of matrix.T @ matrix, exact to float32; beyond, those of a randomised subspace iteration
    (Halko, Martinsson & Tropp 2011, arXiv:0909.4061, algorithm 4.4) with 10 more directions than asked for, run until
    the variance that it catches grows by less than 1e-6 of itself, at most 100 times.
    """
    rows, columns = matrix.shape
    count = min(count, rows, columns)
    if columns <= _EXACT:
        whole: Tensor = torch.linalg.eigh(matrix.T @ matrix).eigenvectors
        return whole.flip(1)[:, :count].T
    width = min(count + _OVERSAMPLED, rows, columns)
    start = torch.randn(columns, width, generator=generator, device=generator.device)
    basis: Tensor = torch.linalg.qr(start.to(matrix)).Q
    caught = matrix.new_zeros(())
    for _ in range(_ITERATIONS):
        image = matrix @ basis
        turn = torch.linalg.eigh(image.T @ image)
        basis = basis @ turn.eigenvectors.flip(1)
        before, caught = caught, turn.eigenvalues[width - count :].sum()
        if caught - before <= _TOLERANCE * caught:
            break
        basis = torch.linalg.qr(matrix.T @ (matrix @ basis)).Q
    return basis[:, :count].T


def spectral_scores(features: Tensor, generator: torch.Generator) -> Tensor:
    """How far each point lies from the mean along the direction of largest variance, squared.

    features: float [N, D], any device; the result is [N]. Algorithm 1 of Tran, Li & Madry 2018, arXiv:1811.00636: the
    squared correlation of the centred features with their top right singular vector.
    """
    if not len(features):
        return features.new_zeros(0)
    centred = features - features.mean(0)
    return (centred @ top_directions(centred, 1, generator).T).sum(1).square()
