"""The desk of the one process that writes: takes records as they come, knows which are due, prints what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from gauntlet.case import Case
from gauntlet.compute import describe_device
from gauntlet.errors import GauntletError
from gauntlet.gates import Verdict
from gauntlet.options import Options
from gauntlet.plan import Choice, counted
from gauntlet.precision import describe_precision
from gauntlet.predictions import gather
from gauntlet.records import Record, Status
from gauntlet.results import ResultsWriter, new_folder
from gauntlet.session import Session
from gauntlet.terminal import print_leaderboard
from gauntlet.wording import duration

__all__ = ["Desk", "header"]

_DIED = "its worker died (killed or crashed)"
_UNMEASURED = "its test ended before the case was measured"
_NEVER_BEGUN = "the run ended before it"


class Desk:
    """due: the cases that were selected. Raises DataError when the results folder can't be written."""

    def __init__(self, session: Session, options: Options, due: Sequence[Case], warn: Callable[[str], None]) -> None:
        self._session = session
        self._due = {case.id: case for case in due}
        self._warn = warn
        self._begun: set[str] = set()
        self._records: dict[str, Record] = {}
        self._unwritten: dict[str, str] = {}
        self._artifacts: list[Path] = []
        self._lost: list[str] = []
        self._writer = ResultsWriter(
            new_folder(options.results, "+".join(Path(suite).stem for suite in options.suites)), warn
        )
        self._announce()

    @property
    def lost(self) -> str:
        """What of the results could not be written, and why; '' while nothing is lost. Known once it is closed."""
        return "; ".join(dict.fromkeys(self._lost))

    def _announce(self) -> None:
        """Whoever is killed writes nothing more."""
        unknown = Verdict(Status.NOT_RUN)
        try:
            self._writer.announce(self._session.record(case, unknown) for case in self._due.values())
        except GauntletError as error:
            self._warn(str(error))

    def take(self, record: Record) -> None:
        """Keep a record and write it through to disk; a case that several tests ask for is written once."""
        if record.id in self._records:
            return
        self._records[record.id] = record
        self._write(record)

    def begin(self, name: str) -> None:
        """A test of the case of that id has started; other tests are none of the desk's business."""
        self._begun.add(name)

    def crash(self, name: str) -> None:
        """The worker that ran the case of that id is no more."""
        if name in self._due:
            self.take(self._session.record(self._due[name], Verdict(Status.ERROR, _DIED)))

    def _write(self, record: Record) -> None:
        try:
            self._writer.append(record)
        except GauntletError as error:
            self._unwritten[record.id] = str(error)
            self._warn(str(error))

    def close(self, why: str) -> None:
        """Give every case that is still due a record that says why it was not run, and write the reports.

        why: what stopped the run; '' where nothing is known to have.
        """
        for case in self._due.values():
            reason = why or (_UNMEASURED if case.id in self._begun else _NEVER_BEGUN)
            self.take(self._session.record(case, Verdict(Status.NOT_RUN, f"not run: {reason}")))
        # There may be room again where the disk was full.
        retried, self._unwritten = self._unwritten, {}
        for name in retried:
            self._write(self._records[name])
        self._lost += self._unwritten.values()
        if not self._unwritten:
            self._writer.settle()
        try:
            self._artifacts = self._writer.finish(self._session.context.registry)
            store = self._session.context.store
            predictions = gather(self._ordered(), store, self._writer.folder, self._warn)
            self._artifacts += [predictions] if predictions else []
        except GauntletError as error:
            self._lost.append(str(error))
            self._warn(str(error))

    def _ordered(self) -> list[Record]:
        return sorted(self._records.values(), key=lambda record: record.place)

    def leaderboard(self, width: int, colour: bool) -> str:
        """The leaderboard, its provenance, the paths of what was written, and last what could not be."""
        text = StringIO()
        console = Console(file=text, width=width, force_terminal=colour, no_color=not colour, highlight=False)
        print_leaderboard(self._ordered(), console, self._artifacts)
        if self.lost:
            console.print(Text(f"The results are not whole: {self.lost}", style="bold red"), soft_wrap=True)
        return text.getvalue()


def header(session: Session, cases: Sequence[Case], choice: Choice | None) -> list[str]:
    """What is about to run, on what, and how much of it is there already."""
    device = session.context.device
    victims = {key for case in cases for key in session.victims(case)}
    cached = 0 if session.context.recompute else sum(session.context.store.contains("victim", key) for key in victims)
    tasks = ", ".join(dict.fromkeys(case.task_name for case in cases))
    seeds = " ".join(dict.fromkeys(str(seed) for case in cases for seed in case.seeds))
    lines = [
        f"gauntlet: {counted(cases)} on {tasks}; seeds {seeds}; {describe_device(device)}",
        f"gauntlet: precision auto: {describe_precision(device)}",
        f"gauntlet: store {session.context.store.root}: {cached} of {len(victims)} victims cached",
    ]
    if choice is not None:
        fits = f"{len(choice.kept)} of {counted(cases)} fit into the budget, about {duration(choice.seconds)}"
        lines.append(f"gauntlet: {fits}")
    return lines
