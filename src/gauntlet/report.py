"""The base of every report plug-in: records in, one file's text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gauntlet.errors import GauntletError, missing
from gauntlet.records import Record

__all__ = ["Report", "ReportUnavailableError"]


class ReportUnavailableError(GauntletError):
    """A report whose optional dependency is not installed; the other reports are written all the same."""


@dataclass(frozen=True)
class Report:
    """A report. filename: what it is called in the results folder."""

    filename: ClassVar[str]

    def render(self, records: Sequence[Record]) -> str:
        """The whole file as text; '' where there is nothing to show, and no file is written. Raises
        ReportUnavailableError, with the remedy, without its dependency.
        """
        raise NotImplementedError(missing(self, "render"))
