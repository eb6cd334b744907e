"""How the training data lie with the users: alike, or skewed by class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["dirichlet_split", "even_split", "shares_to_counts"]


def even_split(size: int, users: int, generator: torch.Generator) -> list[Tensor]:
    """int64 positions of each user, sorted: a random partition of range(size) into parts that differ by one at most."""
    order = torch.randperm(size, generator=generator)
    return [part.sort().values for part in order.tensor_split(users)]


def dirichlet_split(labels: Tensor, users: int, alpha: float, generator: torch.Generator) -> list[Tensor]:
    """int64 positions of each user, sorted: of each class, shares drawn from Dir(alpha).

    Hsu et al. 2019, arXiv:1909.06335, as Bagdasaryan et al. 2020 (arXiv:1807.00459) use it: class size times
    Dir(alpha), where a small alpha leaves most of a class with few users. Differs: rounded by largest remainders, so
    that every image goes to exactly one user. A user may be left with nothing.
    """
    # torch's Dirichlet takes no generator.
    draws = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    parts: list[list[Tensor]] = [[] for _ in range(users)]
    for value in torch.unique(labels).tolist():
        members = (labels == value).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        counts = shares_to_counts(draws.dirichlet(np.full(users, alpha)), len(members))
        for part, taken in zip(parts, members.split(counts), strict=True):
            part.append(taken)
    return [torch.cat(part).sort().values for part in parts]


def shares_to_counts(shares: np.ndarray[tuple[int], np.dtype[np.float64]], total: int) -> list[int]:
    """Whole numbers in proportion to `shares` (which add up to 1) whose sum is `total`, by largest remainders."""
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return [int(count) for count in counts]
