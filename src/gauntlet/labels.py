"""Label maps: which label a triggered image is meant to get, and which images count (traps T1 and T15)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["AllToAll", "AllToOne", "LabelMap", "SourceToTarget"]


class LabelMap:
    """Maps true labels to the labels that the attacker wants."""

    def apply(self, labels: Tensor, classes: int) -> Tensor:
        """int64 [N] true labels to int64 [N] wanted labels."""
        raise NotImplementedError

    def eligible(self, labels: Tensor, classes: int) -> Tensor:
        """bool [N]: the images over which ASR is counted: those whose wanted label is not the true one."""
        return self.apply(labels, classes) != labels


@dataclass(frozen=True)
class AllToOne(LabelMap):
    """Every class goes to `target`."""

    target: int

    def apply(self, labels: Tensor, classes: int) -> Tensor:  # noqa: ARG002
        return labels.new_full(labels.shape, self.target)


@dataclass(frozen=True)
class AllToAll(LabelMap):
    """Class y goes to y + shift modulo the number of classes."""

    shift: int = 1

    def apply(self, labels: Tensor, classes: int) -> Tensor:
        return (labels + self.shift) % classes


@dataclass(frozen=True)
class SourceToTarget(LabelMap):
    """Only `source` goes to `target`; the other classes keep their label."""

    source: int
    target: int

    def apply(self, labels: Tensor, classes: int) -> Tensor:  # noqa: ARG002
        return labels.masked_fill(labels == self.source, self.target)
