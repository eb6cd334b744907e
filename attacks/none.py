"""The control without poison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from gauntlet.attack import Attack, Backdoor, Family, Mounted
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.labels import AllToOne
from gauntlet.patch import PatchTrigger
from gauntlet.plugin import attack
from gauntlet.views import AttackerView

__all__ = ["NoAttack"]


@attack
@dataclass(frozen=True)
class NoAttack(PatchTrigger, Attack):
    """Nothing is poisoned; badnets' trigger is still stamped at test time (trap T8: the 0 % row).

    Its ASR is what an unbackdoored network yields for the same trigger and target.
    """

    family: ClassVar[Family] = Family.CONTROL

    target: Annotated[int, Field(ge=0)] = 0

    def check(self, facts: TaskFacts) -> None:
        self.check_patch(facts)
        if self.target >= facts.classes:
            raise SettingError(f"target = {self.target}; legal on {facts.name}: 0 to {facts.classes - 1}")

    @property
    def backdoors(self) -> tuple[Backdoor, ...]:
        return (Backdoor("backdoor", self.paint_patch, AllToOne(self.target)),)

    def mount(self, view: AttackerView) -> Mounted:
        network = view.tools.train(view.training, "training", shared=True)
        nothing = torch.zeros(len(view.training), dtype=torch.bool)
        return Mounted(network, view.training, nothing, torch.arange(len(view.training)))
