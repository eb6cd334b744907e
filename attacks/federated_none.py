"""The control of federated attacks: a federation of honest users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from gauntlet.attack import Backdoor, Family
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.federated.federation import Federation
from gauntlet.labels import AllToOne
from gauntlet.patch import PatchTrigger
from gauntlet.plugin import attack

__all__ = ["FederatedNone"]


@attack
@dataclass(frozen=True)
class FederatedNone(PatchTrigger, Federation):
    """Nobody attacks; federated_blind's trigger is still stamped at test time (trap T8: the 0 % row).

    Beside an aggregation it says what the aggregation costs in clean accuracy.
    """

    family: ClassVar[Family] = Family.CONTROL
    cost: ClassVar[float] = 3.0

    target: Annotated[int, Field(ge=0)] = 0

    def check(self, facts: TaskFacts) -> None:
        if self.target >= facts.classes:
            raise SettingError(f"target = {self.target}; legal on {facts.name}: 0 to {facts.classes - 1}")
        self.check_patch(facts)
        super().check(facts)

    @property
    def backdoors(self) -> tuple[Backdoor, ...]:
        return (Backdoor("backdoor", self.paint_patch, AllToOne(self.target)),)
