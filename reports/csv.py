"""The long table as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gauntlet.leaderboard import frame
from gauntlet.plugin import report
from gauntlet.records import Record
from gauntlet.report import Report

__all__ = ["Csv"]


@report
@dataclass(frozen=True)
class Csv(Report):
    """Every record as a row of leaderboard.csv, for a spreadsheet or pandas; see `gauntlet.leaderboard.frame`."""

    filename: ClassVar[str] = "leaderboard.csv"

    def render(self, records: Sequence[Record]) -> str:
        return frame(records).to_csv(index=False, lineterminator="\n")
