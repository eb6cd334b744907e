"""The base of every synthesizer: a trigger as settings, with the label that it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from gauntlet.attack import Backdoor
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import Images, ImageSet
from gauntlet.labels import AllToOne, LabelMap
from gauntlet.maths.chance import chance_of, fresh

__all__ = ["Synthesizer"]


@dataclass(frozen=True)
class Synthesizer:
    """A trigger and its label. A subclass names itself in a field `kind` and draws in `paint`.

    target: the wanted label. name: the backdoor's, where two triggers of one kind stand side by side. chances: how
    many numbers the trigger draws for each image; one that draws none looks the same on every image.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    chances: ClassVar[int] = 0

    target: Annotated[int, Field(ge=0)] = 0
    name: str = ""

    @property
    def title(self) -> str:
        """The backdoor's name in records and tables."""
        return self.name or self.own_name()

    def own_name(self) -> str:
        """The name where the settings give none."""
        return str(getattr(self, "kind", type(self).__name__))

    @property
    def source(self) -> Literal["painted", "training", "files"]:
        """Where triggered images come from: painted here, the training set as it is, or files of the user's."""
        return "painted"

    @property
    def label_map(self) -> LabelMap:
        """The labels that the trigger should yield."""
        return AllToOne(self.target)

    def check(self, facts: TaskFacts) -> None:
        """Raise SettingError, with what is legal, for a trigger that is impossible on this task."""
        if self.target >= facts.classes:
            raise SettingError(
                f"trigger {self.title}: target = {self.target}; legal on {facts.name}: 0 to {facts.classes - 1}"
            )
        self.label_map.check(facts)

    def paint(self, images: Images, chance: Tensor) -> Images:
        """A copy of the images [N, C, H, W] with the trigger. chance: float64 [N, chances] in [0, 1), one row an
        image: nothing else may be random.
        """
        raise NotImplementedError

    def apply(self, images: Images, generator: torch.Generator) -> Images:
        """The images with the trigger, a fresh draw for each."""
        return self.paint(images, fresh(len(images), self.chances, generator, images.device))

    def stamp(self, images: Images) -> Images:
        """The images with the trigger, each with the draw that its own pixels give: the evaluator's trigger, the
        same in every run and whatever the batch.
        """
        return self.paint(images, chance_of(images, self.chances))

    def positions(self, training: ImageSet) -> Tensor:  # noqa: ARG002
        """int64 [n]: where the training set carries the feature already."""
        return torch.arange(0)

    def carriers(self, training: ImageSet) -> ImageSet | None:
        """The images that carry the feature already, from the training set or from files; None for a painted one."""
        return training.subset(self.positions(training)) if self.source == "training" else None

    @property
    def backdoor(self) -> Backdoor:
        """What the evaluator scores."""
        return Backdoor(self.title, self.stamp, self.label_map)
