"""The network that an unattacked defender would have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gauntlet.defense import Reference
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.views import OracleView

__all__ = ["CleanRetrain"]


@defense
@dataclass(frozen=True)
class CleanRetrain(Reference):
    """Training anew on the whole clean training data: the upper bound of every defense, out of a defender's reach."""

    cost: ClassVar[float] = 1.0

    def rebuild(self, view: OracleView) -> Network:
        return view.tools.train(view.clean_training, "training", shared=True)
