"""Two runs side by side: what became of every case, and which got worse by more than chance explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tabulate import tabulate

from gauntlet.board import Cell
from gauntlet.errors import DataError
from gauntlet.records import Record, Status
from gauntlet.stats import Rate
from gauntlet.summary import figures
from gauntlet.wording import DASH, percent, rate_text, status_text

__all__ = ["Comparison", "compare"]

_FROM_THE_BEST = (
    Status.PASS,
    Status.MARGINAL,
    Status.FAIL,
    Status.ATTACK_FAILED,
    Status.COLLAPSED,
    Status.NOT_APPLICABLE,
    Status.NOT_RUN,
    Status.ERROR,
)
"""A status that says less stands behind every one that says more: unknown is not passed."""
_REFERENCE = "reference"  # the value of Stage.REFERENCE, whose module needs torch


@dataclass(frozen=True)
class Comparison:
    """The records of two runs by case id."""

    old: Mapping[str, Record]
    new: Mapping[str, Record]

    @cached_property
    def common(self) -> tuple[str, ...]:
        """The cases of both runs, in the new one's order."""
        return tuple(name for name in self.new if name in self.old)

    @cached_property
    def worse(self) -> dict[str, tuple[str, ...]]:
        """The cases that got worse, with a sentence for each thing that did."""
        found = {name: tuple(_worsened(self.old[name], self.new[name])) for name in self.common}
        return {name: sentences for name, sentences in found.items() if sentences}

    def text(self) -> str:
        """A table of every case, then what got worse, appeared and vanished, and last the numbers of each."""
        appeared = [name for name in self.new if name not in self.old]
        vanished = [name for name in self.old if name not in self.new]
        rows = [_row(name, self.old.get(name), self.new.get(name)) for name in (*self.new, *vanished)]
        headings = ("case", "status", "clean accuracy", "ASR")
        lines = [tabulate(rows, headings, tablefmt="simple", disable_numparse=True), ""]
        lines += [f"other data than before: {task}" for task in self._other_data()]
        lines += [f"worse: {name}: {sentence}" for name, sentences in self.worse.items() for sentence in sentences]
        lines += [f"appeared: {name}" for name in appeared]
        lines += [f"vanished: {name}" for name in vanished]
        counts = f"{len(self.worse)} worse of {len(self.common)} case{'s' * (len(self.common) != 1)} in both runs"
        return "\n".join([*lines, f"{counts}, {len(appeared)} appeared, {len(vanished)} vanished\n"])

    def _other_data(self) -> list[str]:
        pairs = [(self.old[name], self.new[name]) for name in self.common]
        differing = [two.task for one, two in pairs if one.provenance.task_hash != two.provenance.task_hash]
        return list(dict.fromkeys(differing))


def compare(old: Sequence[Record], new: Sequence[Record]) -> Comparison:
    """The comparison of two runs. Raises DataError where they have no case in common."""
    found = Comparison({record.id: record for record in old}, {record.id: record for record in new})
    if not found.common:
        raise DataError(
            f"the two runs have no case in common: {old[0].id}, ... and {new[0].id}, ...; give two runs of one suite"
        )
    return found


def _worsened(old: Record, new: Record) -> Iterator[str]:
    if _FROM_THE_BEST.index(new.status) > _FROM_THE_BEST.index(old.status):
        yield f"{_changed(_status(old), _status(new))}: {new.reason}"
    before, after = figures(old), figures(new)
    if before is None or after is None:
        return
    if after.clean.interval[1] < before.clean.interval[0]:
        yield f"clean accuracy {_changed(rate_text(before.clean), rate_text(after.clean))}"
    known = {backdoor.name: backdoor.asr for backdoor in before.backdoors}
    for backdoor in after.backdoors:
        if backdoor.name in known and _asr_worsened(known[backdoor.name], backdoor.asr, new):
            which = "ASR" if len(after.backdoors) == 1 else f"ASR of {backdoor.name}"
            yield f"{which} {_changed(rate_text(known[backdoor.name]), rate_text(backdoor.asr))}"


def _asr_worsened(old: Rate, new: Rate, record: Record) -> bool:
    """Whether the intervals lie apart on the wrong side: below where the gate wants the attack to succeed, as in the
    undefended row, else above. A reference column without a gate on its ASR has no wrong side.
    """
    wanted = record.gate.min_asr is not None
    unwanted = record.gate.max_asr is not None or (not wanted and record.stage != _REFERENCE)
    return (wanted and new.interval[1] < old.interval[0]) or (unwanted and new.interval[0] > old.interval[1])


def _row(name: str, old: Record | None, new: Record | None) -> tuple[str, ...]:
    return (name, *(_changed(*pair) for pair in zip(_shown(old), _shown(new), strict=True)))


def _shown(record: Record | None) -> tuple[str, str, str]:
    """Status, clean accuracy and the ASR of the worst backdoor."""
    if record is None:
        return DASH, DASH, DASH
    found = figures(record)
    worst = found.worst if found else None
    clean, asr = (percent(found.clean.value) if found else DASH, percent(worst.asr.value) if worst else DASH)
    return _status(record), clean, asr


def _status(record: Record) -> str:
    return status_text(Cell(record.status, record.verdict, expected=record.expected))


def _changed(old: str, new: str) -> str:
    return old if old == new else f"{old} -> {new}"
