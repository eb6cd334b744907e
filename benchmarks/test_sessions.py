"""Whole commands as a user types them: collecting, listing, a second run, two workers, and what the plan foretold."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks.commands import timed

SUITE = """
tasks = ["digits"]
seeds = {seeds}
architectures = ["{architecture}"]
attacks = [{{ name = "badnets", poison_ratio = {ratios} }}]
defenses = [{defenses}]
[recipe]
epochs = {epochs}
batch_size = 64
[thresholds]
min_undefended_asr = 0
collapse = 0
"""
FLOOR = """
import pytest

@pytest.fixture
def outcome(request):
    return request.param

@pytest.mark.parametrize("outcome", range({count}), ids=str, indirect=True)
def test_case(outcome):
    pass
"""
ROUNDS = 5


class Project:
    """A folder with a suite and the usual test of it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        defaults = {"seeds": [0], "architecture": "shallow_net", "epochs": 0.2, "defenses": '"none"'}
        self.folder = folder
        (folder / "suite.toml").write_text(SUITE.format(**defaults | settings), encoding="utf-8")
        (folder / "test_bench.py").write_text("def test_case(outcome):\n    outcome.check()\n", encoding="utf-8")
        (folder / "pyproject.toml").write_text("[tool.pytest]\nstrict = true\n", encoding="utf-8")

    def run(self, *arguments: str, store: str = "store", **environment: str) -> tuple[float, str]:
        """Seconds and output of a run of the suite."""
        command = [sys.executable, "-m", "pytest", "--suite=suite.toml", f"--store={store}", "-q", *arguments]
        return timed(command, self.folder, **environment)


def ratios(count: int) -> list[float]:
    return [round(0.01 + 0.001 * number, 4) for number in range(count)]


def qualities(count: int) -> str:
    return f'{{ name = "jpeg_compression", quality = {list(range(1, count + 1))} }}'


def floor(count: int, folder: Path, *arguments: str) -> float:
    """Seconds that pytest takes for as many tests that do nothing."""
    (folder / "test_floor.py").write_text(FLOOR.format(count=count), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:gauntlet.pytest_plugin", "test_floor.py", *arguments]
    return median(timed(command, folder)[0] for _ in range(ROUNDS))


def test_collecting_10000_cases(tmp_path: Path, within: Any) -> None:
    """As pytest itself tells: without the start of Python."""
    project = Project(tmp_path, ratios=ratios(100), defenses=qualities(99))
    _, first = project.run("--collect-only")
    assert "10000 tests collected" in first
    found = []
    for _ in range(ROUNDS):
        _, text = project.run("--collect-only")
        found.append(float(re.findall(r"10000 tests collected in ([\d.]+)s", text)[0]))
    within(median(found), 2.0, "s")


@pytest.mark.parametrize("arguments", ["list", "--help"])
def test_the_command(arguments: str, tmp_path: Path, within: Any) -> None:
    command = [str(Path(sys.executable).with_name("gauntlet")), *arguments.split()]
    timed(command, tmp_path)
    within(median(timed(command, tmp_path)[0] for _ in range(ROUNDS)), 0.5, "s")


def test_a_second_run_of_500_cases(tmp_path: Path, within: Any) -> None:
    """Without pytest's own time for 500 tests."""
    project = Project(tmp_path, ratios=ratios(10), defenses=qualities(49))
    assert "500 passed" in project.run()[1]
    seconds = median(project.run()[0] for _ in range(ROUNDS))
    within(seconds - floor(500, tmp_path), 5.0, "s")


@pytest.mark.parametrize(("threads", "goal"), [(1, 1.7), (2, 1)])
def test_two_workers(threads: int, goal: float, tmp_path: Path, duel: Any) -> None:
    """Independent cases, each from an empty store; le_net, whose victims take seconds. Of two threads both cores are
    busy already, and a worker has one.
    """
    project = Project(tmp_path, ratios=ratios(8), architecture="le_net", epochs=32)
    stores = iter(range(1000))

    def run(workers: str, **environment: str) -> None:
        assert "8 passed" in project.run("-n", workers, store=f"store{next(stores)}", **environment)[1]

    duel(
        lambda: run("2"),
        lambda: run("0", OMP_NUM_THREADS=str(threads)),
        goal=goal,
        rounds=3,
        against=f"one process, threads: {threads}",
        warmup=False,
    )


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_plan_comes_true(workers: str, tmp_path: Path, within: Any) -> None:
    """After one run of other seeds: the larger of foretold over real and real over foretold."""
    defenses = '"clean_retrain", "fine_tuning", "spatial_smoothing", "jpeg_compression"'
    project = Project(tmp_path, ratios=ratios(3), architecture="simple_cnn", epochs=12, defenses=defenses, seeds=[0, 1])
    project.run("-n", workers)
    _, text = project.run("--plan", "-n", workers, "--seeds", "5,6,7")
    parts = re.findall(r"([\d.]+) (s|min) to (?:go|start)", text)
    assert len(parts) == 2
    foretold = sum(float(amount) * {"s": 1, "min": 60}[unit] for amount, unit in parts)
    real, _ = project.run("-n", workers, "--seeds", "5,6,7")
    within(max(foretold / real, real / foretold), 1.5, "x")
