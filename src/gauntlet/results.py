"""The folder of one run: every record at once as a line of JSON, the reports at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from gauntlet.errors import DataError
from gauntlet.plugin import Kind
from gauntlet.records import Record
from gauntlet.report import Report, ReportUnavailableError

__all__ = ["RECORDS", "ResultsWriter", "new_folder", "read_records", "run_name", "write_reports"]

RECORDS = "records.jsonl"
"""The file of records in a results folder; all other files there are made from it."""


class _Reports(Protocol):
    """The part of `gauntlet.registry.Registry` that is needed here."""

    def classes(self, kind: Kind) -> dict[str, type]: ...


def run_name(suite: str, now: datetime) -> str:
    """`20261121-023000-quick`: sorts by time."""
    return f"{now:%Y%m%d-%H%M%S}-{suite}"


def new_folder(results: Path, name: str) -> Path:
    """A folder that no other run has: two runs may begin within one second. It is not made yet."""
    name = run_name(name, datetime.now(UTC).astimezone())
    folder, number = results / name, 2
    while folder.exists():
        folder = results / f"{name}-{number}"
        number += 1
    return folder


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
    paths = [folder / RECORDS]
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

    A last line that was cut short is dropped with a warning. Raises DataError without records, or for a damaged line.
    """
    path = folder / RECORDS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"no records in {folder}: {path.name}: {error.strerror}; give the folder of a run") from error
    lines = content.split(b"\n")
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
    if not records:
        raise DataError(f"no records in {folder}: {path.name} is empty; give the folder of a run that finished a case")
    return sorted(records.values(), key=lambda record: record.place)


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
