"""Triggers as one setting of an attack: one or several backdoors in one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from gauntlet.attack import Backdoor
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import Images, ImageSet, quantize, to_float
from gauntlet.synthesizers._base import Synthesizer
from gauntlet.synthesizers.calculator import Calculator
from gauntlet.synthesizers.complex import Complex
from gauntlet.synthesizers.dynamic import Dynamic
from gauntlet.synthesizers.pattern import Pattern
from gauntlet.synthesizers.physical import Physical
from gauntlet.synthesizers.pixel import Pixel
from gauntlet.synthesizers.semantic import Semantic

__all__ = [
    "Painter",
    "Trigger",
    "Triggered",
    "Triggers",
    "backdoors_of",
    "check_triggers",
    "clean_part",
    "painters",
]


def _table(value: object) -> object:
    """A kind's name alone stands for its defaults."""
    return {"kind": value} if isinstance(value, str) else value


def _listed(value: object) -> object:
    """One trigger stands for a list of one."""
    return [value] if isinstance(value, str | Mapping | Synthesizer) else value


Trigger: TypeAlias = Annotated[
    Annotated[Pattern | Pixel | Dynamic | Physical | Semantic | Calculator | Complex, Field(discriminator="kind")],
    BeforeValidator(_table),
]
"""The type of one trigger as a setting: `{ kind = "dynamic", target = 3 }`, or "dynamic" alone."""

Triggers: TypeAlias = Annotated[tuple[Trigger, ...], BeforeValidator(_listed), Field(min_length=1)]
"""The type of one or several triggers as a setting."""


def backdoors_of(triggers: Triggers) -> tuple[Backdoor, ...]:
    """What the evaluator scores: a backdoor for each trigger, deterministic, each image with a draw of its own."""
    return tuple(trigger.backdoor for trigger in triggers)


def check_triggers(triggers: Triggers, facts: TaskFacts) -> None:
    """Raise SettingError for a trigger that is impossible on this task, and for two of one name."""
    for trigger in triggers:
        trigger.check(facts)
    title, count = Counter(trigger.title for trigger in triggers).most_common(1)[0]
    if count > 1:
        raise SettingError(f'triggers: {count} backdoors are called {title}; give each a name, as in name = "second"')


def clean_part(triggers: Triggers, training: ImageSet) -> Tensor:
    """bool [N]: the training images without any feature that is a trigger; the others never count as clean."""
    clean = torch.ones(len(training), dtype=torch.bool)
    for trigger in triggers:
        clean[trigger.positions(training)] = False
    return clean


@dataclass(frozen=True, eq=False)
class Painter:
    """Triggered training samples of one backdoor. carriers: images that carry the feature already, to draw from."""

    trigger: Trigger
    classes: int
    carriers: ImageSet | None = None

    def may(self, labels: Tensor, auxiliary: Tensor | None = None) -> Tensor:
        """bool [n]: the samples whose label the trigger would change; all where carriers take their place."""
        if self.carriers is not None:
            return torch.ones_like(labels, dtype=torch.bool)
        return self.trigger.label_map.eligible(labels, self.classes, auxiliary)

    def __call__(
        self, images: Images, labels: Tensor, generator: torch.Generator, auxiliary: Tensor | None = None
    ) -> tuple[Images, Tensor]:
        """As many triggered images, rounded to 8 bits, and the labels that they should get; fresh draws each time.

        auxiliary: the samples' second labels, for a trigger whose label they are.
        """
        if self.carriers is None:
            wanted = self.trigger.label_map.apply(labels, self.classes, auxiliary)
            return quantize(self.trigger.apply(images, generator)), wanted
        pick = torch.randint(0, len(self.carriers), (len(images),), generator=generator, device=generator.device)
        shown = to_float(self.carriers.images(pick.to(images.device, non_blocking=True)))
        return shown, torch.full_like(labels, self.trigger.target)


def painters(triggers: Triggers, training: ImageSet, classes: int, device: torch.device) -> tuple[Painter, ...]:
    """A painter for each trigger; `training` is the attacker's clean training data."""
    found = [(trigger, trigger.carriers(training)) for trigger in triggers]
    return tuple(
        Painter(trigger, classes, None if carriers is None else carriers.materialised().to(device))
        for trigger, carriers in found
    )


@dataclass(frozen=True)
class Triggered:
    """What an attack with `triggers` derives from: one model, a backdoor for each of them."""

    triggers: Triggers = (Pattern(),)

    def check_triggers(self, facts: TaskFacts) -> None:
        """See `gauntlet.synthesizers.check_triggers`."""
        check_triggers(self.triggers, facts)

    @property
    def backdoors(self) -> tuple[Backdoor, ...]:
        """See `gauntlet.synthesizers.backdoors_of`."""
        return backdoors_of(self.triggers)
