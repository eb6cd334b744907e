from __future__ import annotations

import math
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pytest

from gauntlet.errors import DataError
from gauntlet.plugin import Kind
from gauntlet.records import Record, Status
from gauntlet.report import Report, ReportUnavailableError
from gauntlet.results import RECORDS, ResultsWriter, read_records, run_name, write_reports
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


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """No file may grow beyond `count` bytes: writes fail midway, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
