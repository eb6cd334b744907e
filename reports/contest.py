"""The statistics of CSAW-HackML-2020's repaired pairs as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tabulate import tabulate

from gauntlet.plugin import report
from gauntlet.records import Counts, Record
from gauntlet.report import Report
from gauntlet.stats import pooled, ratio
from gauntlet.summary import attack_label
from gauntlet.wording import DASH, percent

__all__ = ["Contest"]

_HEADINGS = (
    "task",
    "network",
    "attack",
    "backdoor",
    "BadNet",
    "pruned",
    "tuned",
    "pair",
    "false flags",
    "detection rate",
    "residual ASR",
    "true ratio",
)
_LEGEND = """\
Clean accuracy / ASR in percent, the seeds pooled: of the BadNet as it is, pruned by the contest's rule, tuned after
that, and of the pair, which flags what both disagree on. false flags: clean test images that the pair flags; detection
rate: triggered ones; residual ASR: triggered ones that are not flagged and go to the target; true ratio: triggered
images among all that were shown."""


@report
@dataclass(frozen=True)
class Contest(Report):
    """contest.md: BadNet, pruned, tuned and the repaired pair side by side, a row a backdoor; written where a run has
    an `n_plus_1`.
    """

    filename: ClassVar[str] = "contest.md"

    def render(self, records: Sequence[Record]) -> str:
        groups: dict[tuple[str, str, str], list[Record]] = {}
        for record in records:
            if record.scores:
                groups.setdefault((record.task, record.architecture, attack_label(record)), []).append(record)
        rows = [[*key, *row] for key, group in groups.items() for row in _rows(group)]
        if not rows:
            return ""
        table = tabulate(rows, _HEADINGS, "github", disable_numparse=True)
        return f"# Repaired pairs\n\n{_LEGEND}\n\n{table}\n"


def _rows(group: Sequence[Record]) -> Iterator[list[str]]:
    pair = next((record for record in group if record.defense == "n_plus_1"), None)
    if pair is None:
        return
    stages = [
        _find(group, "none"),
        _find(group, "fine_pruning", tune=False),
        _find(group, "fine_pruning", tune=True),
        pair,
    ]
    names = [backdoor.name for backdoor in pair.scores[0].backdoors]
    for place in range(max(1, len(names))):
        cells = [_cell(record, place) for record in stages]
        yield [names[place] if names else DASH, *cells, *_detection(pair, place if names else None)]


def _find(group: Sequence[Record], defense: str, *, tune: bool | None = None) -> Record | None:
    for record in group:
        settings = record.defense_settings
        contest = tune is None or (settings.get("rule") == "contest" and settings.get("tune", True) is tune)
        if record.defense == defense and contest:
            return record
    return None


def _cell(record: Record | None, place: int) -> str:
    if record is None:
        return DASH
    clean = percent(ratio(pooled(score.clean for score in record.scores)))
    found = [score.backdoors[place].asr for score in record.scores if len(score.backdoors) > place]
    return f"{clean} / {percent(ratio(pooled(found))) if found else DASH}"


def _detection(pair: Record, place: int | None) -> list[str]:
    found = [score.detector for score in pair.scores if score.detector]
    clean = pooled(each.clean for each in found)
    if place is None:
        return [_percent(clean), DASH, DASH, DASH]
    caught = pooled(each.backdoors[place].flagged for each in found)
    asr = pooled(score.backdoors[place].asr for score in pair.scores)
    return [_percent(clean), _percent(caught), _percent(asr), _percent(Counts(hits=caught.n, n=caught.n + clean.n))]


def _percent(counts: Counts) -> str:
    return percent(ratio(counts))
