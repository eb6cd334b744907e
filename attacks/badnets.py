"""BadNets: a patch in a corner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from gauntlet.attack import Family
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.labels import AllToAll, LabelMap
from gauntlet.patch import PatchTrigger
from gauntlet.plugin import attack
from gauntlet.poisoning import Poisoning

__all__ = ["BadNets"]


@attack
@dataclass(frozen=True)
class BadNets(PatchTrigger, Poisoning):
    """A patch in a corner; poisoned images take the attacker's label, all-to-one or all-to-all.

    Gu et al. 2017, arXiv:1708.06733. Differs from the paper: the patch is a white 3x3 square on every task.
    pattern="art" with include_target=True is the baseline of the Dioptra demos.
    """

    family: ClassVar[Family] = Family.DIRTY_LABEL

    mode: Literal["all_to_one", "all_to_all"] = "all_to_one"

    @property
    def label_map(self) -> LabelMap:
        return AllToAll() if self.mode == "all_to_all" else super().label_map

    def check(self, facts: TaskFacts) -> None:
        self.check_patch(facts)
        super().check(facts)

    def trigger(self, images: Images) -> Images:
        return self.paint_patch(images)
