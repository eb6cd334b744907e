"""How numbers and statuses are written in every table: percent with one decimal, a dash for what was not measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from gauntlet.board import Cell, Standing
from gauntlet.records import VERDICTS, Record, Status
from gauntlet.stats import Rate

__all__ = [
    "DASH",
    "cell_text",
    "duration",
    "percent",
    "provenance_lines",
    "rate_text",
    "size",
    "standing_text",
    "status_counts",
    "status_text",
    "summary_line",
]

DASH = "–"


def percent(share: float) -> str:
    """`97.8` for 0.978; a dash for NaN."""
    return DASH if math.isnan(share) else f"{100 * share:.1f}"


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `4.5 min`, `1.2 h`; a dash for NaN."""
    if math.isnan(seconds):
        return DASH
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes as `512 B`, `3.4 KiB`, `1.2 GiB`."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def rate_text(rate: Rate) -> str:
    """`3.1 [1.9, 4.8]` in percent, with the Wilson interval."""
    low, high = rate.interval
    return f"{percent(rate.value)} [{percent(low)}, {percent(high)}]"


def status_text(cell: Cell) -> str:
    """The verdict in words; a broken gate that the suite expects says so."""
    return f"{cell.verdict}, expected" if cell.expected and cell.status is not Status.PASS else cell.verdict


def cell_text(cell: Cell, notes: Sequence[str] = ()) -> str:
    """`97.8 / 3.1 [1.9, 4.8] fail`: clean accuracy / ASR of the worst backdoor, and the status unless it is a pass.

    A note is referred to by its place in `notes`, from 1: `not-applicable (2)`.
    """
    parts = []
    if cell.figures:
        worst = cell.figures.worst
        parts.append(f"{percent(cell.figures.clean.value)} / {rate_text(worst.asr) if worst else DASH}")
    if cell.verdict != Status.PASS or not parts:
        parts.append(status_text(cell))
    if cell.note in notes:
        parts.append(f"({notes.index(cell.note) + 1})")
    return " ".join(parts)


def status_counts(counts: Mapping[str, int]) -> str:
    """`4 pass, 2 ungated, 1 fail`, in the order of `VERDICTS`."""
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts.get(verdict))


def standing_text(standing: Standing) -> dict[str, str]:
    """One row of the ranking: heading -> text; shares in percent."""
    return {
        "rank": DASH if standing.rank is None else str(standing.rank),
        "defense": standing.column.label,
        "stage": standing.column.stage,
        "worst ASR": rate_text(standing.worst) if standing.worst else DASH,
        "on": standing.worst_attack or DASH,
        "mean ASR": percent(standing.mean_asr),
        "mean robust": percent(standing.mean_robust),
        "worst clean drop": percent(standing.worst_drop),
        "mean DER": DASH if math.isnan(standing.mean_der) else f"{standing.mean_der:.2f}",
        "coverage": standing.coverage,
        "seconds": DASH if math.isnan(standing.seconds) else f"{standing.seconds:.1f}",
        "statuses": status_counts(standing.statuses),
    }


def summary_line(records: Sequence[Record]) -> str:
    """`24 cases, seeds 0 1 2: 10 pass, 3 fail`."""
    counts = Counter(record.verdict for record in records)
    seeds = sorted({seed for record in records for seed in record.seeds})
    cases = "1 case" if len(records) == 1 else f"{len(records)} cases"
    return f"{cases}, seeds {' '.join(map(str, seeds))}: {status_counts(counts)}"


def provenance_lines(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(what, value): commit, versions, device, data; every distinct value, so that a mixed table shows it."""
    found = [record.provenance for record in records]
    values = {
        "commit": [each.commit for each in found],
        "versions": [
            f"gauntlet {each.gauntlet}, python {each.python}, torch {each.torch}, numpy {each.numpy}" for each in found
        ],
        "device": [each.device for each in found],
        "data": [
            f"{record.task}: {record.provenance.task_provenance}, sha256 {record.provenance.task_hash[:16]}"
            for record in records
        ],
        "started": [min((each.started for each in found), default="")],
    }
    return [(what, value) for what, many in values.items() for value in dict.fromkeys(many)]
