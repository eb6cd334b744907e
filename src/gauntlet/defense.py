"""The bases of every defense plug-in: one per stage, one method each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.errors import SettingError, missing
from gauntlet.facts import TaskFacts
from gauntlet.images import Images, ImageSet, checked_images, checked_levels, chunks, to_float, to_uint8
from gauntlet.network import Network
from gauntlet.plugin import name_of
from gauntlet.views import DefenderView, OracleView

__all__ = [
    "Aggregation",
    "Defense",
    "Filter",
    "InTraining",
    "InputDetector",
    "Inspection",
    "ModelVerdict",
    "Preprocessing",
    "Reference",
    "Repair",
    "Scorer",
    "Stage",
    "require_reserve",
    "reserve_in_words",
]

Scorer: TypeAlias = Callable[[Images], Tensor]
"""float [N, C, H, W] in [0, 1] on the view's device to float [N]: how suspicious each image is by itself; more is
worse."""


class Stage(StrEnum):
    """Where a defense acts."""

    REFERENCE = "reference"
    FILTER = "training-set filter"
    IN_TRAINING = "in training"
    REPAIR = "repair"
    PREPROCESSING = "preprocessing"
    INPUT_DETECTOR = "input detector"
    MODEL_VERDICT = "model verdict"
    AGGREGATION = "aggregation"


@dataclass(frozen=True)
class Defense:
    """A defense. Its fields are its settings; it sees the defender's view and never the attack.

    needs_reserve: it can't work with an empty clean reserve (`least_reserve`). leaves_victim: it changes
    neither the network nor the inputs, so that its score is the undefended one. cost: its own work in multiples of one
    victim training, for the planner.
    """

    stage: ClassVar[Stage]
    needs_reserve: ClassVar[bool] = False
    leaves_victim: ClassVar[bool] = False
    cost: ClassVar[float] = 0.05

    @property
    def least_reserve(self) -> int:
        """The fewest clean images that it can work with; to be overridden where one isn't enough."""
        return int(self.needs_reserve)

    def check(self, facts: TaskFacts) -> None:
        """Raise SettingError, with the legal range, for settings that are impossible on this task."""


@dataclass(frozen=True)
class Reference(Defense):
    """A reference column: it may see what no defense may, and is never ranked."""

    stage: ClassVar[Stage] = Stage.REFERENCE

    def rebuild(self, view: OracleView) -> Network:
        """The network of this column."""
        raise NotImplementedError(missing(self, "rebuild"))


@dataclass(frozen=True)
class Filter(Defense):
    """Chooses which delivered training samples to keep; the engine trains anew on them."""

    stage: ClassVar[Stage] = Stage.FILTER
    cost: ClassVar[float] = 1.0

    def keep(self, view: DefenderView) -> Tensor:
        """bool [len(view.training)]: True for a sample to train on."""
        raise NotImplementedError(missing(self, "keep"))


@dataclass(frozen=True)
class InTraining(Defense):
    """Trains the delivered set in its own way."""

    stage: ClassVar[Stage] = Stage.IN_TRAINING
    cost: ClassVar[float] = 1.0

    def train(self, view: DefenderView) -> Network:
        """A network trained on view.training."""
        raise NotImplementedError(missing(self, "train"))


@dataclass(frozen=True)
class Repair(Defense):
    """Changes the victim with the help of the clean reserve."""

    stage: ClassVar[Stage] = Stage.REPAIR

    def repair(self, view: DefenderView) -> Network:
        """The repaired network; view.victim may be changed in place."""
        raise NotImplementedError(missing(self, "repair"))


@dataclass(frozen=True)
class Preprocessing(Defense):
    """Changes images: the training set before training (apply_fit), the inputs at test time (apply_predict)."""

    stage: ClassVar[Stage] = Stage.PREPROCESSING

    apply_fit: bool = False
    apply_predict: bool = True

    def __post_init__(self) -> None:
        if not (self.apply_fit or self.apply_predict):
            raise ValueError("apply_fit and apply_predict are both false: the defense would do nothing")

    def transform(self, images: Images, generator: torch.Generator) -> Images:
        """float [N, C, H, W] in [0, 1] to the same, any device; random draws come from `generator`."""
        raise NotImplementedError(missing(self, "transform"))

    def transform_levels(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        """`transform` of images of 8 bits, uint8 [N, C, H, W] to uint8: what the engine asks for.

        Override it, with the same result, where a transform can do without the way through floats.
        """
        changed = self.transform(to_float(levels), generator)
        return to_uint8(checked_images(changed, levels.shape, f"{name_of(self)}'s transform"))

    def transform_training(self, training: ImageSet, generator: torch.Generator) -> ImageSet:
        """The training set that apply_fit trains on; by default every image transformed, rounded to 8 bits."""
        images = training.images()
        who = f"{name_of(self)}'s transform_levels"
        for part in chunks(len(images), 4096):
            given = images[part]
            images[part] = checked_levels(self.transform_levels(given, generator), given.shape, who)
        return ImageSet.of(images, training.labels)


@dataclass(frozen=True)
class InputDetector(Defense):
    """Judges each input at test time and rejects what it flags.

    The engine takes the threshold from clean images alone, those of the reserve that the scorer hasn't seen: at most a
    share `false_positive_rate` of them scores above (trap T17). A detector whose rule leaves no choice gives its own
    `limit` instead, and may learn from the whole reserve. The scorer judges every image by itself, whatever else is in
    the batch.
    """

    stage: ClassVar[Stage] = Stage.INPUT_DETECTOR
    needs_reserve: ClassVar[bool] = True
    limit: ClassVar[float | None] = None

    false_positive_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05

    @property
    def least_reserve(self) -> int:
        """What the scorer is made from, and an image for the threshold where there is one to set."""
        return super().least_reserve + (self.limit is None)

    def learns_from(self, reserve: int) -> int:
        """How many of `reserve` clean images the scorer is made from; the rest sets the threshold, so that some must
        remain unless there is a `limit`.
        """
        return reserve // 2 if self.limit is None else reserve

    def scorer(self, view: DefenderView) -> Scorer:
        """What judges the inputs; view.reserve holds the images that `learns_from` asks for."""
        raise NotImplementedError(missing(self, "scorer"))


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a model verdict found.

    anomaly: float [classes], how anomalous each class is as a target; more is worse. suspects: the classes that are
    judged to be targets of a backdoor; a flagged model has at least one. network: a repaired network to deploy
    instead of the victim, or None. triggers, masks: recovered patterns [classes, C, H, W] and [classes, 1, H, W], in
    [0, 1], or None.
    """

    anomaly: Tensor
    suspects: tuple[int, ...]
    network: Network | None = None
    triggers: Tensor | None = None
    masks: Tensor | None = None


@dataclass(frozen=True)
class ModelVerdict(Defense):
    """Says whether a model hides a backdoor, and for which targets; it may hand back a repaired one."""

    stage: ClassVar[Stage] = Stage.MODEL_VERDICT

    def inspect(self, view: DefenderView) -> Inspection:
        """The verdict on view.victim, which may be changed in place."""
        raise NotImplementedError(missing(self, "inspect"))


@dataclass(frozen=True)
class Aggregation(Defense):
    """The server of a federation: it sees the updates of each round, and neither who sent them nor any data.

    The engine runs the attack's federation anew with it; where the attack is none, the defense is not applicable.
    """

    stage: ClassVar[Stage] = Stage.AGGREGATION
    cost: ClassVar[float] = 3.0

    def check_updates(self, updates: int) -> None:
        """Raise SettingError, with the legal range, for settings that are impossible with so many updates a round."""

    def aggregate(self, updates: Tensor, rate: float, generator: torch.Generator) -> Tensor:
        """The step of the global network, float32 [D], from updates float32 [n, D], one a user in no telling order.

        Without a defense it is rate * mean(updates) = (eta / N) * sum(updates) (`gauntlet.federated.rounds`).
        """
        raise NotImplementedError(missing(self, "aggregate"))


def require_reserve(defense: Defense, name: str, size: int) -> None:
    """Raise SettingError when a defense is given fewer clean images than it can work with."""
    if size < defense.least_reserve:
        raise SettingError(f"reserve = {size}: {name} needs a clean reserve; legal: {reserve_in_words(defense)}")


def reserve_in_words(defense: Defense) -> str:
    """The clean reserves that a defense works with, for messages and lists: `no`, `from 1 image`, `from 2 images`..."""
    least = defense.least_reserve
    return f"from {least} image{'s' if least > 1 else ''}" if least else "no"
