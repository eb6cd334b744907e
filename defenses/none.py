"""No defense: the column that every other one is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gauntlet.defense import Reference
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.views import OracleView

__all__ = ["NoDefense"]


@defense
@dataclass(frozen=True)
class NoDefense(Reference):
    """The victim as it was handed over."""

    leaves_victim: ClassVar[bool] = True
    cost: ClassVar[float] = 0.0

    def rebuild(self, view: OracleView) -> Network:
        return view.victim
