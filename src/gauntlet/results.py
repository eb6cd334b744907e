"""The folder of one run: what is due at the start, every record at once as a line of JSON, the reports at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from gauntlet.errors import DataError
from gauntlet.files import fault
from gauntlet.plugin import Kind
from gauntlet.records import Provenance, Record, Status
from gauntlet.report import Report, ReportUnavailableError

__all__ = ["DUE", "RECORDS", "ResultsWriter", "new_folder", "read_records", "run_name", "write_reports"]

RECORDS = "records.jsonl"
"""The file of records in a results folder; all reports there are made from it."""
DUE = "due.json"
"""The selected cases, in a results folder as long as some of them have no record: while the run goes on, and after it
was killed.
"""
_UNRECORDED = {
    "status": Status.NOT_RUN,
    "reason": "not run: the run ended before its record was written",
    "scores": (),
    "costs": (),
}

_KNOWN_BEFORE = set(Record.model_fields) - {*_UNRECORDED, "provenance"}


class _Due(BaseModel):
    """The content of DUE. provenance: by task. cases: what a record says of each before it runs."""

    provenance: dict[str, Provenance]
    cases: tuple[dict[str, Any], ...]

    def records(self) -> list[Record]:
        """A record for each case, of one that has not run. Raises ValidationError."""
        return [
            Record.model_validate({**case, **_UNRECORDED, "provenance": self.provenance.get(str(case.get("task")))})
            for case in self.cases
        ]


class _Reports(Protocol):
    """The part of `gauntlet.registry.Registry` that is needed here."""

    def classes(self, kind: Kind) -> dict[str, type]: ...


def run_name(suite: str, now: datetime) -> str:
    """`20261121-023000-quick`: sorts by time."""
    return f"{now:%Y%m%d-%H%M%S}-{suite}"


def new_folder(results: Path, name: str) -> Path:
    """Make a folder that no other run has: two may begin within one second. Raises DataError when it can't be made."""
    name = run_name(name, datetime.now(UTC).astimezone())
    number = 1
    while True:
        folder = results / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _unwritable(folder, error) from error


class ResultsWriter:
    """Writes one run's folder, which is made when it is not there. Raises DataError when it can't be."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self._warn = warn
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _end_last_line(folder / RECORDS)
        except OSError as error:
            raise _unwritable(folder, error) from error

    def announce(self, due: Iterable[Record]) -> None:
        """Keep what is due until `settle`: else a run that is killed would look whole. DataError when the disk is full.

        due: a record of each case; status, reason and scores don't matter.
        """
        provenance, cases = dict[str, Provenance](), list[str]()
        for record in due:
            provenance[record.task] = record.provenance
            cases.append(record.model_dump_json(include=_KNOWN_BEFORE, exclude_defaults=True))
        shared = json.dumps({task: each.model_dump(mode="json") for task, each in provenance.items()})
        _replace(self.folder / DUE, "".join(('{"provenance":', shared, ',"cases":[\n', ",\n".join(cases), "\n]}\n")))

    def settle(self) -> None:
        """Every case that was due has its record on disk."""
        # Where it can't be removed it does no harm: each of its cases has a record, which takes its place.
        with suppress(OSError):
            (self.folder / DUE).unlink(missing_ok=True)

    def append(self, record: Record) -> None:
        """Write one record through to the file at once: an interrupted run loses no finished case.

        A later record of the same id supersedes an earlier one. Raises DataError when the disk is full.
        """
        path = self.folder / RECORDS
        whole = 0
        try:
            whole = path.stat().st_size if path.exists() else 0
            with path.open("ab") as file:
                file.write(record.model_dump_json().encode() + b"\n")
        except OSError as error:
            # Half a line would be glued to the next record once there is room again.
            with suppress(OSError):
                os.truncate(path, whole)
            raise _unwritable(self.folder, error) from error

    def finish(self, registry: _Reports) -> list[Path]:
        """Write every report of the registry; the paths of all files of the run, none when no case has finished."""
        path = self.folder / RECORDS
        if not path.exists() or not path.stat().st_size:
            return []
        return write_reports(self.folder, read_records(self.folder, self._warn), registry, self._warn)


def write_reports(
    folder: Path, records: Sequence[Record], registry: _Reports, warn: Callable[[str], None]
) -> list[Path]:
    """Render every report anew into a run's folder; the paths of all files there, the records first.

    warn gets one sentence for a report whose optional dependency is missing.
    """
    paths = [folder / RECORDS] if (folder / RECORDS).exists() else []
    for cls in registry.classes(Kind.REPORT).values():
        report: Report = cls()
        try:
            text = report.render(records)
        except ReportUnavailableError as error:
            warn(f"{report.filename} was not written: {error}")
            continue
        if not text:
            (folder / report.filename).unlink(missing_ok=True)
            continue
        _replace(folder / report.filename, text)
        paths.append(folder / report.filename)
    return paths


def read_records(folder: Path, warn: Callable[[str], None]) -> list[Record]:
    """The records of a run in the order of its suite, whichever worker finished first; of each id the last.

    Cases that were due and have none get one that says not-run. A last line that was cut short is dropped with a
    warning. Raises DataError without any, or for a damaged line or file.
    """
    due = _read_due(folder / DUE)
    try:
        records = _read_lines(folder / RECORDS, warn)
    except OSError as error:
        if not due or not isinstance(error, FileNotFoundError):
            raise DataError(f"no records in {folder}: {RECORDS}: {error.strerror}; give the folder of a run") from error
        records = {}
    if not records and not due:
        raise DataError(f"no records in {folder}: {RECORDS} is empty; give the folder of a run that finished a case")
    for record in due:
        records.setdefault(record.id, record)
    return sorted(records.values(), key=lambda record: record.place)


def _read_lines(path: Path, warn: Callable[[str], None]) -> dict[str, Record]:
    if path.exists() and (problem := fault(path)):
        raise DataError(f"{path} can't be read: {problem}; give the folder of a run")
    lines = path.read_bytes().split(b"\n")
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = Record.model_validate_json(line)
        except ValidationError as error:
            if number == len(lines):
                warn(f"{path}: line {number} was cut short by an interruption and is left out")
                break
            raise DataError(f"{path}: line {number} is damaged: {_problem(error)}; delete the line") from error
        records[record.id] = record
    return records


def _read_due(path: Path) -> list[Record]:
    """A record of each case that was due; none in the folder of a run that came to its end."""
    remedy = "delete it, and the cases that have no record stay out of the reports"
    if not os.path.lexists(path):
        return []
    if problem := fault(path):
        raise DataError(f"{path} can't be read: {problem}; {remedy}")
    try:
        return _Due.model_validate_json(path.read_bytes()).records()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}; {remedy}") from error
    except ValidationError as error:
        raise DataError(f"{path} is damaged: {_problem(error)}; {remedy}") from error


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


def _end_last_line(path: Path) -> None:
    """Repair a last line without line break, which an interruption left, lest the next record be glued to it."""
    if not path.exists():
        return
    content = path.read_bytes()
    rest = content[content.rfind(b"\n") + 1 :]
    if not rest:
        return
    with path.open("r+b") as file:
        if _is_record(rest):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(len(content) - len(rest))


def _is_record(line: bytes) -> bool:
    try:
        Record.model_validate_json(line)
    except ValidationError:
        return False
    return True


def _replace(path: Path, text: str) -> None:
    """Write under another name, then rename: a reader never sees half a report."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path.parent, error) from error


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(f"the results folder {folder} can't be written: {error.strerror or error}; choose another")
