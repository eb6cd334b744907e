from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import ClassVar

import pytest

from gauntlet.errors import DataError
from gauntlet.plugin import Kind
from gauntlet.records import Record, Status
from gauntlet.report import Report, ReportUnavailableError
from gauntlet.results import DUE, RECORDS, ResultsWriter, new_folder, read_records, run_name, write_reports
from tests.full_disk import room_for
from tests.sample_records import record, sample


@dataclass(frozen=True)
class Plain(Report):
    """Counts."""

    filename: ClassVar[str] = "plain.txt"

    def render(self, records: Sequence[Record]) -> str:
        return f"{len(records)} records\n"


@dataclass(frozen=True)
class Unavailable(Report):
    """Lacks something."""

    filename: ClassVar[str] = "fancy.html"

    def render(self, records: Sequence[Record]) -> str:
        raise ReportUnavailableError("fancy is missing; install it")


class Reports:
    def __init__(self, *found: type[Report]) -> None:
        self._found = found

    def classes(self, kind: Kind) -> dict[str, type]:
        assert kind is Kind.REPORT
        return {cls.__name__.lower(): cls for cls in self._found}


def silent(text: str) -> None:
    raise AssertionError(f"unexpected warning: {text}")


def write(folder: Path, records: Sequence[Record]) -> ResultsWriter:
    writer = ResultsWriter(folder, silent)
    for each in records:
        writer.append(each)
    return writer


def test_run_name_sorts_by_time() -> None:
    assert run_name("quick", datetime(2026, 11, 21, 2, 30, tzinfo=UTC)) == "20261121-023000-quick"


def test_records_survive_the_round_trip(tmp_path: Path) -> None:
    records = sample(missing=[("clean_label", "fine_tuning")])
    write(tmp_path / "deep" / "run", records)
    assert read_records(tmp_path / "deep" / "run", silent) == records


def test_each_record_is_on_disk_at_once(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, silent)
    for count, each in enumerate(sample()[:3], start=1):
        writer.append(each)
        assert len(read_records(tmp_path, silent)) == count


def test_numbers_that_json_lacks_survive(tmp_path: Path) -> None:
    one = record()
    distances = {"cosine": {"mean": math.nan, "max": math.inf}}
    backdoor = one.scores[0].backdoors[0].model_copy(update={"distances": distances})
    score = one.scores[0].model_copy(update={"backdoors": (backdoor,)})
    write(tmp_path, [one.model_copy(update={"scores": (score,)})])
    (again,) = read_records(tmp_path, silent)
    found = again.scores[0].backdoors[0].distances["cosine"]
    assert math.isnan(found["mean"])
    assert found["max"] == math.inf


def test_unusual_line_separators_in_a_reason_stay_inside_the_record(tmp_path: Path) -> None:
    one = record(clean=None, status=Status.ERROR, reason="a\u2028b\x85c\nd")
    write(tmp_path, [one])
    assert read_records(tmp_path, silent) == [one]


def test_a_later_record_supersedes_in_place(tmp_path: Path) -> None:
    first, second = sample()[:2]
    again = first.model_copy(update={"status": Status.FAIL, "reason": "again"})
    write(tmp_path, [first, second, again])
    assert read_records(tmp_path, silent) == [again, second]


def test_records_stand_in_the_order_of_the_suite(tmp_path: Path) -> None:
    """Whichever worker finished first."""
    late, early = (record(defense=name).model_copy(update={"place": at}) for name, at in (("none", 1), ("strip", 0)))
    write(tmp_path, [late, early])
    assert read_records(tmp_path, silent) == [early, late]


def test_a_truncated_last_line_is_dropped_with_a_warning(tmp_path: Path) -> None:
    records = sample()[:3]
    write(tmp_path, records)
    path = tmp_path / RECORDS
    path.write_bytes(path.read_bytes()[:-200])
    warnings: list[str] = []
    assert read_records(tmp_path, warnings.append) == records[:2]
    assert len(warnings) == 1
    assert "line 3 was cut short" in warnings[0]


@pytest.mark.parametrize("cut", [200, 1])
def test_a_resumed_run_never_glues_records(tmp_path: Path, cut: int) -> None:
    records = sample()[:3]
    write(tmp_path, records[:2])
    path = tmp_path / RECORDS
    path.write_bytes(path.read_bytes()[:-cut])
    write(tmp_path, records[2:])
    kept = records[:1] if cut == 200 else records[:2]
    assert read_records(tmp_path, silent) == [*kept, records[2]]


@pytest.mark.parametrize("damage", [b"{}", b"not json", b"\xff\xfe", b'{"id": "x"}'])
def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, sample()[:2])
    path = tmp_path / RECORDS
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, damage, second, b""]))
    with pytest.raises(DataError, match=r"records\.jsonl: line 2 is damaged: .*delete the line"):
        read_records(tmp_path, silent)


def test_a_folder_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give the folder of a run"):
        read_records(tmp_path, silent)
    (tmp_path / RECORDS).touch()
    with pytest.raises(DataError, match="is empty"):
        read_records(tmp_path, silent)


def ordered(records: Sequence[Record]) -> list[Record]:
    return [each.model_copy(update={"place": place}) for place, each in enumerate(records)]


def test_cases_that_were_due_and_have_no_record_are_not_run(tmp_path: Path) -> None:
    """As a run leaves its folder when it is killed."""
    due = ordered(sample()[:5])
    writer = ResultsWriter(tmp_path, silent)
    writer.announce(due)
    for each in (due[3], due[1]):
        writer.append(each)
    found = read_records(tmp_path, silent)
    assert [one.id for one in found] == [one.id for one in due]
    assert [found[1], found[3]] == [due[1], due[3]]
    reason = "not run: the run ended before its record was written"
    unknown = {"status": Status.NOT_RUN, "reason": reason, "scores": (), "costs": ()}
    assert [found[0], found[2], found[4]] == [due[at].model_copy(update=unknown) for at in (0, 2, 4)]
    assert (tmp_path / DUE).read_text().count(due[0].provenance.commit) == 1


def test_a_run_that_was_killed_before_its_first_record_is_reported(tmp_path: Path) -> None:
    ResultsWriter(tmp_path, silent).announce(sample()[:3])
    found = read_records(tmp_path, silent)
    assert [one.status for one in found] == [Status.NOT_RUN] * 3
    assert [path.name for path in write_reports(tmp_path, found, Reports(Plain), silent)] == ["plain.txt"]


def test_nothing_is_due_any_more_once_every_case_has_its_record(tmp_path: Path) -> None:
    writer = write(tmp_path, sample()[:2])
    writer.announce(sample()[:3])
    writer.settle()
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS]
    assert len(read_records(tmp_path, silent)) == 2


def test_what_is_due_needs_room(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, silent)
    with room_for(100), pytest.raises(DataError, match="can't be written"):
        writer.announce(sample())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"provenance": {}, "cases": {}}',
        b'{"provenance": {}, "cases": [null]}',
        b'{"provenance": {}, "cases": [{"id": "x", "task": []}]}',
        b'{"provenance": {"digits": {}}, "cases": []}',
        b'{"provenance": {}, "cases": [{"id": "\\ud800", "place": 1e999}]}',
    ],
)
def test_a_damaged_file_of_due_cases_is_one_sentence(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, sample()[:2])
    (tmp_path / DUE).write_bytes(damage)
    with pytest.raises(DataError, match=r"due\.json is damaged: [^\n]*; delete it, and the cases that have no record"):
        read_records(tmp_path, silent)


def test_what_is_due_can_not_pass_for_measured(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, silent)
    writer.announce(sample()[:1])
    file = tmp_path / DUE
    file.write_text(file.read_text().replace('"cases":[\n{', '"cases":[\n{"status":"pass","reason":"",'))
    assert [one.status for one in read_records(tmp_path, silent)] == [Status.NOT_RUN]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_file_of_due_cases_is_one_sentence(tmp_path: Path, make: Callable[[Path], None]) -> None:
    write(tmp_path, sample()[:2])
    make(tmp_path / DUE)
    with pytest.raises(DataError, match=r"due\.json can't be read: .*; delete it, and"):
        read_records(tmp_path, silent)


def test_finish_writes_every_report_and_leaves_nothing_else(tmp_path: Path) -> None:
    paths = write(tmp_path, sample()[:3]).finish(Reports(Plain))
    assert paths == [tmp_path / RECORDS, tmp_path / "plain.txt"]
    assert (tmp_path / "plain.txt").read_text() == "3 records\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.txt", RECORDS]


def test_finish_without_a_case_writes_nothing(tmp_path: Path) -> None:
    assert ResultsWriter(tmp_path, silent).finish(Reports(Plain)) == []


def test_a_report_without_its_dependency_does_not_stop_the_others(tmp_path: Path) -> None:
    warnings: list[str] = []
    records = sample()[:1]
    write(tmp_path, records)
    paths = write_reports(tmp_path, records, Reports(Unavailable, Plain), warnings.append)
    assert [path.name for path in paths] == [RECORDS, "plain.txt"]
    assert warnings == ["fancy.html was not written: fancy is missing; install it"]


def test_a_report_that_breaks_leaves_the_old_file_whole(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Breaks(Plain):
        """Breaks."""

        def render(self, records: Sequence[Record]) -> str:
            raise RuntimeError("boom")

    writer = write(tmp_path, sample()[:1])
    writer.finish(Reports(Plain))
    with pytest.raises(RuntimeError, match="boom"):
        writer.finish(Reports(Breaks))
    assert (tmp_path / "plain.txt").read_text() == "1 records\n"


def test_a_folder_that_can_not_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="can't be written"):
        ResultsWriter(tmp_path / "file" / "run", silent)
    (tmp_path / "run" / RECORDS).mkdir(parents=True)
    with pytest.raises(DataError, match="can't be written"):
        ResultsWriter(tmp_path / "run", silent)


def test_a_disk_that_is_full_for_a_while_leaves_no_half_record(tmp_path: Path) -> None:
    first, second, third = sample()[:3]
    writer = write(tmp_path, [first])
    with room_for((tmp_path / RECORDS).stat().st_size + 40), pytest.raises(DataError, match="can't be written"):
        writer.append(second)
    writer.append(third)
    assert [one.id for one in read_records(tmp_path, silent)] == [first.id, third.id]


def test_nothing_is_reported_where_nothing_was_written(tmp_path: Path) -> None:
    writer = write(tmp_path, [])
    (tmp_path / RECORDS).touch()
    assert writer.finish(Reports(Plain)) == []


def test_reports_that_can_not_be_written_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that is read only, where removing the draft fails as well."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(DataError, match="can't be written: Read-only file system"):
        write_reports(tmp_path, sample(), Reports(Plain), silent)


def test_runs_that_begin_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    together = Barrier(16)

    def make(_number: int) -> Path:
        together.wait()
        return new_folder(tmp_path / "results", "quick")

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(make, range(16)))
    assert len({*made}) == 16
    assert all(folder.is_dir() for folder in made)


def test_records_in_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECORDS)
    with pytest.raises(DataError, match="it is a named pipe; due: a file; give the folder of a run"):
        read_records(tmp_path, silent)
