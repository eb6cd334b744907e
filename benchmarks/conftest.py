"""Benchmarks: `duel` times ours and theirs in turns in one run, `within` one thing against a limit; docs/benchmarks.md
quotes the tables at the end.

Results are compared before anything is timed. Speed is never asserted. With pytest-benchmark's --benchmark-disable
duels compare them and time nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tabulate import tabulate

from gauntlet.compute import keep_freed_memory
from gauntlet.dataset import TaskData, prepare
from gauntlet.registry import Registry
from gauntlet.store import Store
from gauntlet.task import LoadContext

ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared/data"

REST = 0.1
"""Seconds before each turn: threads spin for a while after their work, in the other's process too, and hold a core."""

_DUELS = pytest.StashKey[list[list[str]]]()
_LIMITS = pytest.StashKey[list[list[str]]]()
_FIGURES = pytest.StashKey[list[list[str]]]()

Duel = Callable[..., None]
Versus = Callable[[float, float, str, float], None]
Within = Callable[..., None]


@pytest.fixture
def duel(benchmark: BenchmarkFixture, versus: Versus) -> Duel:
    """Time `ours` against `theirs` in turns and note the ratio of the medians.

    ours, theirs: callables without arguments that do the same work; goal: the ratio asked for; rounds: of each, at
    least 5 unless one takes minutes; against: what theirs is.
    """

    def run(
        ours: Callable[[], Any],
        theirs: Callable[[], Any],
        *,
        goal: float,
        against: str = "ART",
        rounds: int = 5,
        warmup: bool = True,
    ) -> None:
        if not benchmark.enabled:
            benchmark.pedantic(ours)  # type: ignore[no-untyped-call]
            return
        seconds: list[float] = []

        def turn() -> None:
            time.sleep(REST)
            begun = time.perf_counter()
            theirs()
            seconds.append(time.perf_counter() - begun)
            time.sleep(REST)

        if warmup:
            ours()
            theirs()
        benchmark.pedantic(ours, setup=turn, rounds=rounds, iterations=1)  # type: ignore[no-untyped-call]
        mine, other = benchmark.stats.stats.median, statistics.median(seconds)  # type: ignore[union-attr]
        benchmark.extra_info["other_seconds"] = seconds
        versus(mine, other, against, goal)

    return run


@pytest.fixture
def versus(request: pytest.FixtureRequest) -> Versus:
    """Note the ratio of two times in seconds: versus(ours, theirs, what theirs is, the ratio asked for)."""

    def note(ours: float, theirs: float, against: str, goal: float) -> None:
        rows = request.config.stash.setdefault(_DUELS, [])
        rows.append([request.node.name, f"{ours:.4g}", against, f"{theirs:.4g}", f"{theirs / ours:.1f}", f"{goal:g}"])

    return note


@pytest.fixture
def within(request: pytest.FixtureRequest) -> Within:
    """Note a measured amount beside the most that it should be: within(found, limit, "s")."""

    def note(found: float, limit: float, unit: str) -> None:
        rows = request.config.stash.setdefault(_LIMITS, [])
        rows.append([request.node.name, f"{found:.3g} {unit}", f"{limit:g} {unit}"])

    return note


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Note something measured that has no goal of its own: figure("815 TFLOP/s")."""

    def note(text: str) -> None:
        request.config.stash.setdefault(_FIGURES, []).append([request.node.name, text])

    return note


@pytest.fixture(scope="session", autouse=True)
def as_in_the_bench() -> None:
    """Freed memory is kept, as in every session of the bench."""
    keep_freed_memory()


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    made = make(*arguments)
    while (call := connection.recv()) is not None:
        connection.send(call(made))


@pytest.fixture
def elsewhere() -> Iterator[Callable[..., Callable[[Any], Any]]]:
    """ART in a process of its own, as its users have it: in this one the C library keeps freed memory, as ours asks.

    elsewhere(make, *arguments) makes an object there, and gives what calls something with that object.
    """
    context = multiprocessing.get_context("spawn")
    running = []

    def start(make: Callable[..., Any], *arguments: Any) -> Callable[[Any], Any]:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, make, arguments), daemon=True)
        process.start()
        running.append((process, here))

        def ask(call: Any) -> Any:
            here.send(call)
            return here.recv()

        return ask

    yield start
    for process, connection in running:
        connection.send(None)
        process.join(10)


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> TaskData:
    """MNIST from ../shared/data, from the folder that GAUNTLET_DATA names, or downloaded."""
    return _prepared("mnist", tmp_path_factory.mktemp("store"), data_folder)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> TaskData:
    """The embedded digits."""
    return _prepared("digits", tmp_path_factory.mktemp("store"), data_folder)


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> TaskData:
    """CIFAR-10 as Parquet from ../shared/data or the folder that GAUNTLET_DATA names; skips without it."""
    folder = data_folder / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 in {folder}")
    return _prepared(f"parquet:{folder}", tmp_path_factory.mktemp("store"), data_folder)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Where the data sets lie: what GAUNTLET_DATA names, or ../shared/data."""
    named = os.environ.get("GAUNTLET_DATA")
    return Path(named) if named else SHARED


def _prepared(name: str, store: Path, folder: Path) -> TaskData:
    load = LoadContext(folder, offline=True) if folder.is_dir() else LoadContext(store / "data")
    return prepare(Registry.discover().task(name), name, Store(store, _fail), load)


def _fail(warning: str) -> None:
    raise AssertionError(warning)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The ratios, and the machine that they were measured on."""
    duels, limits, figures = (config.stash.get(key, []) for key in (_DUELS, _LIMITS, _FIGURES))
    for title, headers, rows in (
        ("ratios (medians, in turns)", ("work", "ours, s", "against", "theirs, s", "ratio", "goal"), duels),
        ("amounts", ("work", "measured", "at most"), limits),
        ("figures", ("work", "measured"), figures),
    ):
        if rows:
            terminalreporter.section(title)
            terminalreporter.write_line(tabulate(rows, headers, tablefmt="pipe", disable_numparse=True))
    if duels or limits:
        terminalreporter.write_line(
            f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
            f"Python {platform.python_version()}, torch {torch.__version__}"
        )
