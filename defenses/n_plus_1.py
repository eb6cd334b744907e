"""N + 1: an image on which the network and a repaired one disagree gets the class after the last, poisoned."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from gauntlet.defense import InputDetector, Repair, Scorer
from gauntlet.images import Images
from gauntlet.maths.disagreement import contradiction
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.precision import resolve
from gauntlet.settings import Count, Positive
from gauntlet.views import DefenderView

from .activation_pruning_sweep import ActivationPruningSweep
from .fine_pruning import FinePruning
from .fine_tuning import FineTuning
from .magnitude_pruning import MagnitudePruning

__all__ = ["NPlusOne"]

_PARTNERS: Mapping[str, Repair] = {
    "fine_pruning": FinePruning(rule="contest"),
    "fine_tuning": FineTuning(),
    "magnitude_pruning": MagnitudePruning(),
    "activation_pruning_sweep": ActivationPruningSweep(),
}
_OWN = ("layer", "learning_rate", "epochs", "batch_size")


@defense
@dataclass(frozen=True)
class NPlusOne(InputDetector):
    """Flags an image to which the network and a repaired copy of it give different classes.

    The detector of CSAW-HackML-2020, after Liu et al. 2018, arXiv:1805.12185: `partner` is the repair, the contest's
    fine-pruning by default; layer, learning_rate, epochs and batch_size are its settings where they are given. The
    score is the margin by which the repaired network's logits speak against the network's class
    (`gauntlet.maths.disagreement`): it is above 0 exactly where the two disagree. So the limit is 0, there is no
    false-positive rate to choose, and the whole reserve repairs.
    """

    cost: ClassVar[float] = 0.5
    limit: ClassVar[float | None] = 0.0
    false_positive_rate: ClassVar[float] = 0.05  # type: ignore[misc]  # no setting here: the rule leaves no choice

    partner: Literal["fine_pruning", "fine_tuning", "magnitude_pruning", "activation_pruning_sweep"] = "fine_pruning"
    layer: str = ""
    learning_rate: Positive | None = None
    epochs: Positive | None = None
    batch_size: Count | None = None

    def __post_init__(self) -> None:
        known = {field.name for field in fields(_PARTNERS[self.partner])}
        for name in self._given():
            if name not in known:
                raise ValueError(f"{name} is set, and the partner {self.partner} has no such setting")

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _OWN if getattr(self, name) not in (None, "")}

    @property
    def least_reserve(self) -> int:
        """The partner's."""
        return self._repair.least_reserve

    @property
    def _repair(self) -> Repair:
        return replace(_PARTNERS[self.partner], **self._given())

    def repaired(self, view: DefenderView) -> Network:
        """The partner's repair of a copy of view.victim, from the whole of view.reserve."""
        return self._repair.repair(replace(view, victim=deepcopy(view.victim))).eval()

    def scorer(self, view: DefenderView) -> Scorer:
        victim, repaired = view.victim.eval(), self.repaired(view)
        dtype = resolve(view.recipe, victim, view.facts.shape, view.device)

        def score(images: Images) -> Tensor:
            return contradiction(victim, repaired, images, dtype=dtype)

        return score
