"""Who gets which images: fixed, disjoint, stratified splits that don't depend on a case's seeds (trap T11)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gauntlet import randomness

__all__ = ["Rows", "halved", "quota_order", "split"]

_TEST_PARTS = 4
_RESERVE_PERCENT = 15
_RESERVE_LIMIT = 2500


@dataclass(frozen=True, eq=False)
class Rows:
    """Row numbers of a source's training images, int64, disjoint.

    training: the attacker's, ascending. reserve: in an order whose every prefix is stratified. test: what is split
    off for the evaluator, ascending; empty where the source has a test set of its own.
    """

    training: Tensor
    reserve: Tensor
    test: Tensor


def split(labels: Tensor, classes: int, *, own_test: bool) -> Rows:
    """Split int64 [N] labels: a quarter for the test unless the source has its own; of the rest 15 % but at most
    2,500 for the clean reserve; what remains is the attacker's training data.

    Each class keeps at least one training image if it has two images (three without an own test set).
    """
    draw = randomness.generator(0, "splits")
    rows = torch.randperm(len(labels), generator=draw)
    test = rows[:0]
    if not own_test:
        test, rows = _take(rows, labels, quota_order(_count(labels, classes), len(labels) // _TEST_PARTS))
    size = min(_RESERVE_LIMIT, len(rows) * _RESERVE_PERCENT // 100)
    reserve, training = _take(rows, labels, quota_order(_count(labels[rows], classes), size))
    return Rows(training.sort().values, reserve, test.sort().values)


def halved(labels: Tensor, classes: int, *, own_test: bool) -> Rows:
    """Split int64 [N] labels of a handed-over model's clean images: one half is the reserve, the other, rounded down,
    the test; all is reserve where the source has its own test set.
    """
    rows = torch.randperm(len(labels), generator=randomness.generator(0, "splits"))
    size = 0 if own_test else len(rows) // 2
    test, rest = _take(rows, labels, quota_order(_count(labels, classes), size))
    reserve, nothing = _take(rest, labels, quota_order(_count(labels[rest], classes), len(rest)))
    return Rows(nothing, reserve, test.sort().values)


def quota_order(counts: Tensor, length: int) -> Tensor:
    """int64 [length] of classes, at most sum(counts) long, whose every prefix is stratified.

    A prefix of h holds, of each class, h * counts / sum(counts) rounded up or down, so a smaller choice lies inside
    a larger one. The quota method: Balinski & Young 1975, The American Mathematical Monthly 82.
    """
    sizes = counts.numpy().astype(np.int64)
    total = int(sizes.sum())
    taken = np.zeros_like(sizes)
    order = np.empty(length, dtype=np.int64)
    for step in range(length):
        below_quota = taken * total < sizes * (step + 1)
        order[step] = chosen = int(np.argmax(np.where(below_quota, sizes / (taken + 1), -1.0)))
        taken[chosen] += 1
    return torch.from_numpy(order)


def _take(rows: Tensor, labels: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The first rows of each class, arranged by the classes in `order`, and the rows that are left."""
    own = labels[rows]
    places = torch.empty_like(order)
    for label in set(order.tolist()):
        wanted = (order == label).nonzero()[:, 0]
        places[wanted] = (own == label).nonzero()[: len(wanted), 0]
    left = torch.ones(len(rows), dtype=torch.bool)
    left[places] = False
    return rows[places], rows[left]


def _count(labels: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels, minlength=classes)
