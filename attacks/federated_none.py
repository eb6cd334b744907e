"""The control of federated attacks: a federation of honest users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gauntlet.attack import Family
from gauntlet.facts import TaskFacts
from gauntlet.federated.federation import Federation
from gauntlet.plugin import attack
from gauntlet.synthesizers import Triggered

__all__ = ["FederatedNone"]


@attack
@dataclass(frozen=True)
class FederatedNone(Triggered, Federation):
    """Nobody attacks; federated_blind's triggers are still drawn at test time (trap T8: the 0 % row).

    Beside an aggregation it says what the aggregation costs in clean accuracy.
    """

    family: ClassVar[Family] = Family.CONTROL
    cost: ClassVar[float] = 3.0

    def check(self, facts: TaskFacts) -> None:
        self.check_triggers(facts)
        super().check(facts)
