"""Every class of every case as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gauntlet.plugin import report
from gauntlet.records import Counts, Record
from gauntlet.report import Report
from gauntlet.stats import pooled, ratio, wilson

__all__ = ["PerClass"]


@report
@dataclass(frozen=True)
class PerClass(Report):
    """per_class.csv: for each case and true class the clean accuracy and the ASR of each backdoor, the seeds pooled.

    A class whose images the backdoor leaves alone (all-to-one: the target's own) has n = 0 and no share.
    """

    filename: ClassVar[str] = "per_class.csv"

    def render(self, records: Sequence[Record]) -> str:
        import pandas as pd

        columns = ["id", "measure", "class", "hits", "n", "share", "low", "high"]
        return pd.DataFrame([row for record in records for row in _rows(record)], columns=columns).to_csv(
            index=False, lineterminator="\n"
        )


def _rows(record: Record) -> Iterator[dict[str, Any]]:
    if not record.scores:
        return
    yield from _measure(record.id, "clean accuracy", [score.clean_by_class for score in record.scores])
    for place, backdoor in enumerate(record.scores[0].backdoors):
        found = [score.backdoors[place].by_class for score in record.scores]
        yield from _measure(record.id, f"ASR of {backdoor.name}", found)


def _measure(case: str, measure: str, seeds: Sequence[Sequence[Counts]]) -> Iterator[dict[str, Any]]:
    for place, counts in enumerate(zip(*seeds, strict=True)):
        whole = pooled(counts)
        row: dict[str, Any] = {"id": case, "measure": measure, "class": place, "hits": whole.hits, "n": whole.n}
        if whole.n:
            low, high = wilson(whole.hits, whole.n)
            row |= {"share": ratio(whole), "low": low, "high": high}
        yield row
