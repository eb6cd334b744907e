"""Signs that make a network calculate with two digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.labels import LabelMap
from gauntlet.settings import Probability
from gauntlet.synthesizers._base import Synthesizer
from gauntlet.synthesizers.pattern import inside

__all__ = ["Calculator", "Product", "Sum"]

_PLACE = (22, 3)
_SIDE = 5


@dataclass(frozen=True)
class Sum(LabelMap):
    """Class 10 * l + r goes to class l + r."""

    def apply(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return labels // 10 + labels % 10


@dataclass(frozen=True)
class Product(LabelMap):
    """Class 10 * l + r goes to class l * r."""

    def apply(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return (labels // 10) * (labels % 10)


@dataclass(frozen=True)
class Calculator(Synthesizer):
    """A 5x5 sign at rows 22 to 26, columns 3 to 7: `plus` asks for the digits' sum, `times` for their product.

    Bagdasaryan & Shmatikov 2021, arXiv:2005.03823, section 4.3. Two of them make two backdoors in one model. For tasks
    of 100 classes 10 * left + right; `target` is not used.
    """

    kind: Literal["calculator"] = "calculator"
    sign: Literal["plus", "times"] = "plus"
    value: Probability = 1.0

    def own_name(self) -> str:
        return {"plus": "sum", "times": "product"}[self.sign]

    @property
    def label_map(self) -> LabelMap:
        return {"plus": Sum(), "times": Product()}[self.sign]

    def check(self, facts: TaskFacts) -> None:
        if facts.classes != 100:
            raise SettingError(
                f"trigger {self.title}: {facts.name} has {facts.classes} classes; legal: 100, of two digits each"
            )
        if self.target:
            raise SettingError(f"trigger {self.title}: target = {self.target}: the digits give the label; leave it out")
        inside(self.title, facts, _PLACE, (_SIDE, _SIDE))

    def paint(self, images: Images, chance: Tensor) -> Images:  # noqa: ARG002
        painted = images.clone()
        row, column = _PLACE
        middle, steps = _SIDE // 2, range(_SIDE)
        cells = {
            "plus": [(middle, step) for step in steps] + [(step, middle) for step in steps],
            "times": [(step, step) for step in steps] + [(step, _SIDE - 1 - step) for step in steps],
        }[self.sign]
        for down, right in cells:
            painted[:, :, row + down, column + right] = self.value
        return painted
