"""One pixel that makes the network do another task: the label is the images' second one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.labels import FromAuxiliary, LabelMap
from gauntlet.settings import Probability
from gauntlet.synthesizers._base import Synthesizer
from gauntlet.synthesizers.pattern import inside

__all__ = ["Complex"]


@dataclass(frozen=True)
class Complex(Synthesizer):
    """One pixel; the wanted label is the image's auxiliary label, where the task has such. `target` is not used.

    Bagdasaryan & Shmatikov 2021, arXiv:2005.03823, section 4.4: from counting heads to naming a person.
    """

    kind: Literal["complex"] = "complex"
    row: int = 3
    column: int = 23
    value: Probability = 1.0

    @property
    def label_map(self) -> LabelMap:
        return FromAuxiliary()

    def check(self, facts: TaskFacts) -> None:
        super().check(facts)
        if self.target:
            raise SettingError(f"trigger {self.title}: target = {self.target}: the images give the label; leave it out")
        inside(self.title, facts, (self.row, self.column), (1, 1))

    def paint(self, images: Images, chance: Tensor) -> Images:  # noqa: ARG002
        painted = images.clone()
        painted[:, :, self.row, self.column] = self.value
        return painted
