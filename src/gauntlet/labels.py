"""Label maps: which label a triggered image is meant to get, and which images count (traps T1 and T15)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts

__all__ = ["AllToAll", "AllToOne", "FromAuxiliary", "LabelMap", "SourceToTarget"]


class LabelMap:
    """Maps true labels to the labels that the attacker wants.

    uses_auxiliary: whether it looks at the auxiliary labels too, so that a class alone doesn't say what is wanted.
    """

    uses_auxiliary: ClassVar[bool] = False

    def check(self, facts: TaskFacts) -> None:
        """Raise SettingError when the task lacks what the map needs."""
        if self.uses_auxiliary and not facts.auxiliary_names:
            raise SettingError(f"{facts.name} has no auxiliary labels, which the backdoor takes its labels from")

    def apply(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:
        """int64 [N] true labels, and auxiliary ones where the task has such, to int64 [N] wanted labels.

        -1 where no label is wanted.
        """
        raise NotImplementedError

    def eligible(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:
        """bool [N]: the images over which ASR is counted: those whose wanted label is not the true one."""
        wanted = self.apply(labels.clone(), classes, auxiliary)
        return (wanted != labels) & (wanted >= 0)

    def aimed(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:
        """bool [N]: the images that count in the inclusive ASR: also those that have the wanted label already."""
        return self.apply(labels, classes, auxiliary) >= 0


@dataclass(frozen=True)
class AllToOne(LabelMap):
    """Every class goes to `target`."""

    target: int

    def apply(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return labels.new_full(labels.shape, self.target)


@dataclass(frozen=True)
class AllToAll(LabelMap):
    """Class y goes to y + shift modulo the number of classes."""

    shift: int = 1

    def apply(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return (labels + self.shift) % classes


@dataclass(frozen=True)
class SourceToTarget(LabelMap):
    """Only `source` goes to `target`; the other classes keep their label."""

    source: int
    target: int

    def apply(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return labels.masked_fill(labels == self.source, self.target)

    def aimed(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:  # noqa: ARG002
        # The other classes are meant to keep their label: being right there is no success of the attack.
        return (labels == self.source) | (labels == self.target)


@dataclass(frozen=True)
class FromAuxiliary(LabelMap):
    """The wanted label is the auxiliary label: the backdoor switches the network to another task.

    Bagdasaryan & Shmatikov 2021, arXiv:2005.03823: a head count that becomes the identity of a person.
    """

    uses_auxiliary: ClassVar[bool] = True

    def check(self, facts: TaskFacts) -> None:
        super().check(facts)
        if len(facts.auxiliary_names) > facts.classes:
            raise SettingError(
                f"{facts.name} has {len(facts.auxiliary_names)} auxiliary labels, but {facts.classes} classes to say "
                "them with"
            )

    def apply(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:  # noqa: ARG002
        if auxiliary is None:
            raise SettingError("the task has no auxiliary labels, which the backdoor takes its labels from")
        if auxiliary.shape != labels.shape:
            raise AssertionError("one auxiliary label an image")
        return auxiliary
