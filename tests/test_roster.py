"""Collecting without torch: what is kept from the first run names the same cases, and never decides a result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gauntlet.marks import marks_of
from gauntlet.options import Options
from gauntlet.roster import roster
from gauntlet.session import Session, open_session

ROOT = Path(__file__).parents[1]
SUITE = """
tasks = ["digits"]
seeds = [0]
architectures = ["shallow_net"]
attacks = ["none", { name = "badnets", poison_ratio = [0.05, 0.1] }]
defenses = ["jpeg_compression"]
[recipe]
epochs = 0.2
[thresholds]
min_undefended_asr = 0
collapse = 0
[[gate]]
id = "mnist-*"
max_asr = 0.5
"""
WATCH = """
import sys

def pytest_unconfigure():
    print("torch is", "there" if "torch" in sys.modules else "absent")
"""


def suite(folder: Path, text: str = SUITE) -> Options:
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    return Options(suites=(str(folder / "tiny.toml"),), store=folder / "store", device="cpu")


def never() -> Session:
    raise AssertionError("the cases were made")


def test_the_kept_roster_is_that_of_the_cases(tmp_path: Path) -> None:
    options = suite(tmp_path)
    session = open_session(options, pytest.fail)
    made, kept = roster(options, lambda: session), roster(options, never)
    assert kept == made
    assert [row.id for row in kept.rows] == [case.id for case in session.cases]
    assert [row.marks for row in kept.rows] == [tuple(marks_of(case)) for case in session.cases]
    assert kept.warnings == session.warnings != ()
    groups = [row.group for row in kept.rows]
    assert [groups.count(group) for group in dict.fromkeys(groups)] == [2, 2, 2]


@pytest.mark.parametrize("change", ["suite", "seeds", "code"])
def test_another_question_is_asked_anew(change: str, tmp_path: Path) -> None:
    options = suite(tmp_path)
    session = open_session(options, pytest.fail)
    roster(options, lambda: session)
    if change == "suite":
        options = suite(tmp_path, SUITE.replace("0.05", "0.06"))
    if change == "seeds":
        options = Options(suites=options.suites, store=options.store, seeds=(1,))
    if change == "code":
        plugin = tmp_path / "mine.py"
        plugin.write_text("")
        options = Options(suites=options.suites, store=options.store, plugins=(plugin,))
    with pytest.raises(AssertionError, match="made"):
        roster(options, never)


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text('pytest_plugins = ["gauntlet.pytest_plugin"]\n' + WATCH)
    (folder / "test_bench.py").write_text("def test_case(outcome):\n    outcome.check()\n")
    given = ["--suite=tiny.toml", "--store=store", "--results=results", "-p", "no:cacheprovider", *arguments]
    command = [sys.executable, "-m", "pytest", *given]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_collecting_a_second_time_loads_no_torch(tmp_path: Path) -> None:
    suite(tmp_path)
    first, second = (bench(tmp_path, "--collect-only", "-q") for _ in range(2))
    assert "torch is there" in first.stdout
    assert "torch is absent" in second.stdout
    lines = [[line for line in one.stdout.splitlines() if "::" in line] for one in (first, second)]
    assert len(lines[0]) == 6
    assert lines[0] == lines[1]
    assert "matches no case" in first.stdout
    assert "matches no case" in second.stdout
    assert not (tmp_path / "results").exists()


def test_a_stale_roster_is_a_mistake_in_one_line_and_runs_nothing(tmp_path: Path) -> None:
    suite(tmp_path)
    bench(tmp_path, "--collect-only")
    (kept,) = (tmp_path / "store" / ".recalled").glob("*.json")
    kept.write_text(kept.read_text().replace("poison_ratio=0.05", "poison_ratio=0.07"))
    result = bench(tmp_path)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "poison_ratio=0.07" in result.stderr
    assert "run again" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert not (tmp_path / "results").exists()


def test_a_kept_roster_runs_like_a_fresh_one(tmp_path: Path) -> None:
    suite(tmp_path)
    for workers in (["-n", "0"], ["-n", "2"]):
        result = bench(tmp_path, *workers)
        assert "6 passed" in result.stdout, result.stdout + result.stderr
    folders = sorted((tmp_path / "results").iterdir())
    lines = [(folder / "records.jsonl").read_text().splitlines() for folder in folders]
    scores = [{(one := json.loads(line))["id"]: one["scores"] for line in records} for records in lines]
    assert scores[0] == scores[1]
