"""One pixel as the trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gauntlet.attack import Family
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.plugin import attack
from gauntlet.poisoning import Poisoning
from gauntlet.settings import Probability

__all__ = ["SinglePixel"]


@attack
@dataclass(frozen=True)
class SinglePixel(Poisoning):
    """One pixel of one value in every channel; poisoned images take the target's label.

    Gu et al. 2017, arXiv:1708.06733, section 3.1.1. row and column count from the top left, negative ones from the
    bottom right as Python indices do.
    """

    family: ClassVar[Family] = Family.DIRTY_LABEL

    row: int = -2
    column: int = -2
    value: Probability = 1.0

    def check(self, facts: TaskFacts) -> None:
        _, height, width = facts.shape
        for name, place, size in (("row", self.row, height), ("column", self.column, width)):
            if not -size <= place < size:
                raise SettingError(
                    f"{name} = {place} lies outside {facts.name}'s {height}x{width}; legal: {-size} to {size - 1}"
                )
        super().check(facts)

    def trigger(self, images: Images) -> Images:
        stamped = images.clone()
        stamped[:, :, self.row, self.column] = self.value
        return stamped
