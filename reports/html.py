"""The leaderboard as one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gauntlet.board import ranked
from gauntlet.curves import HEIGHT, WIDTH, curves
from gauntlet.findings import findings
from gauntlet.plugin import report
from gauntlet.records import VERDICTS, Record
from gauntlet.report import Report, ReportUnavailableError
from gauntlet.stats import Rate
from gauntlet.summary import attack_label, defense_label, defense_seconds, figures, seconds
from gauntlet.wording import DASH, duration, percent, provenance_lines, status_text, summary_line

__all__ = ["Html"]

_TEMPLATE = Path(__file__).with_name("html.jinja")


@report
@dataclass(frozen=True)
class Html(Report):
    """leaderboard.html: ranking, heat map and a sortable table of every record; one file, no external resource."""

    filename: ClassVar[str] = "leaderboard.html"

    def render(self, records: Sequence[Record]) -> str:
        try:
            import jinja2
        except ImportError:
            raise ReportUnavailableError("jinja2 is missing; install 'backdoor-gauntlet[html]'") from None
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters.update(
            percent=percent, duration=duration, plain=_plain, interval=_interval, mebibytes=_mebibytes
        )
        boards, standings = ranked(records)
        return (
            environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
                summary=summary_line(records),
                title=", ".join(dict.fromkeys(record.suite for record in records)),
                standings=standings,
                boards=boards,
                findings=findings(records),
                curves=curves(records),
                curve_size=(WIDTH, HEIGHT),
                lines=[_Line.of(record) for record in records],
                provenance=provenance_lines(records),
                verdicts=VERDICTS,
                status_text=status_text,
                dash=DASH,
            )
            + "\n"
        )


@dataclass(frozen=True)
class _Line:
    """One record of the long table."""

    record: Record
    attack: str
    defense: str
    figures: object
    seconds: float
    defense_seconds: float
    peak_memory: float

    @classmethod
    def of(cls, record: Record) -> _Line:
        peak = max((cost.peak_memory for cost in record.costs), default=math.nan)
        labels = (attack_label(record), defense_label(record))
        return cls(record, *labels, figures(record), seconds(record), defense_seconds(record), peak)


def _interval(rate: Rate) -> str:
    low, high = rate.interval
    return f"{percent(low)}–{percent(high)}"


def _plain(value: float, digits: int = 2) -> str:
    return DASH if math.isnan(value) else f"{value:.{digits}f}"


def _mebibytes(size: float) -> str:
    return DASH if math.isnan(size) else f"{size / 2**20:,.0f} MiB"
