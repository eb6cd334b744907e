"""The base of every attack plug-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from gauntlet.architecture import Architecture
from gauntlet.errors import missing
from gauntlet.facts import TaskFacts
from gauntlet.federated.updates import Trajectory
from gauntlet.images import Images, ImageSet
from gauntlet.labels import LabelMap
from gauntlet.network import Network
from gauntlet.views import AttackerView

__all__ = ["Attack", "Backdoor", "Family", "Mounted", "unchanged"]


class Family(StrEnum):
    """Families are pytest markers: `-k clean_label` finds every clean-label attack."""

    CONTROL = "control"
    DIRTY_LABEL = "dirty_label"
    CLEAN_LABEL = "clean_label"
    TRAINING_CONTROLLED = "training_controlled"
    HANDED_OVER = "handed_over"


@dataclass(frozen=True)
class Backdoor:
    """One trigger with its label map; the trigger takes and gives float [N, C, H, W] in [0, 1].

    The engine rounds what it gives to 8 bits. given: reads the images that carry the feature already (a semantic
    backdoor, or somebody's poisoned files): they are scored as they are in the place of stamped test images, and
    the trigger is `unchanged`. Their labels are the true ones, -1 where nobody knows. rows: the same for positions in
    the test set: these test images carry the feature, and they alone are scored.
    """

    name: str
    trigger: Callable[[Images], Images]
    labels: LabelMap
    given: Callable[[], ImageSet] | None = None
    rows: tuple[int, ...] = ()

    @property
    def is_stamped(self) -> bool:
        """Whether the trigger is stamped on the test images."""
        return self.given is None and not self.rows

    def carriers(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:
        """bool [N]: the test images, of these true labels, that carry the feature as they are: no clean ones."""
        found = torch.zeros(len(labels), dtype=torch.bool)
        if self.rows:
            found[list(self.rows)] = True
        elif self.is_stamped and self.trigger is unchanged:
            found = self.labels.eligible(labels, classes, auxiliary)
        return found


def unchanged(images: Images) -> Images:
    """The images themselves: the trigger of a backdoor whose images are given."""
    return images


@dataclass(frozen=True, eq=False)
class Mounted:
    """What an attack leaves behind.

    training: the set that the network was trained on. poisoned: bool [len(training)]. sources: int64
    [len(training)], the position in the attacker's clean training data that each sample was made from.
    The defender gets `training` only when the attack delivers data; poisoned and sources are the evaluator's and
    the reference columns'. trajectory: the rounds of a federation, for the evaluator's curves.
    """

    network: Network
    training: ImageSet
    poisoned: Tensor
    sources: Tensor
    trajectory: Trajectory | None = None


@dataclass(frozen=True)
class Attack:
    """An attack. Its fields are its settings; it sees the attacker's view and never the defense.

    delivers_data: the attacker poisons a data set on which the defender trains; False when the attacker trains and
    hands over a model. marks_poison: `Mounted.poisoned` tells all of the poison; False where triggered images are made
    within the training, and where nobody knows. cost: its own work in multiples of one victim training, for the
    planner.
    """

    family: ClassVar[Family]
    delivers_data: ClassVar[bool] = True
    marks_poison: ClassVar[bool] = True
    cost: ClassVar[float] = 1.0

    def check(self, facts: TaskFacts) -> None:
        """Raise SettingError, with the legal range, for settings that are impossible on this task."""

    def check_architecture(self, architecture: Architecture) -> None:
        """Raise SettingError where these settings are impossible with the case's architecture."""

    def models(self) -> tuple[str, ...]:
        """Names of the other architectures that `mount` trains: their code is part of the victim's key."""
        return ()

    @property
    def backdoors(self) -> tuple[Backdoor, ...]:
        """The triggers that the evaluator stamps on test images, with the labels they should yield."""
        raise NotImplementedError(missing(self, "backdoors"))

    def mount(self, view: AttackerView) -> Mounted:
        """Poison, train, and hand over."""
        raise NotImplementedError(missing(self, "mount"))
