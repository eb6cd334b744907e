"""Workers that die under pytest-xdist, played: no process is started."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gauntlet.scheduling import ByVictim


class Worker:
    """Runs a test when it knows the next one, or that there is none: as pytest-xdist's own."""

    def __init__(self, number: int) -> None:
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.shutting_down = False
        self.collected = False
        self.due: list[int] = []

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        assert indices, "a worker that is given nothing never reports, so it is never given anything"
        self.due += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def waits(self) -> bool:
        return self.collected and not self.shutting_down and len(self.due) < 2


class Controller:
    """The part of pytest-xdist's session that talks to its scheduler."""

    def __init__(self, tests: Sequence[str], deadly: set[str], workers: int) -> None:
        config: Any = SimpleNamespace(
            getvalue=lambda name: [f"{workers}*popen"] if name == "tx" else [],
            option=SimpleNamespace(loadscopereorder=False),
            stash={},
        )
        self.tests = list(tests)
        self.deadly = deadly
        self.ran: list[str] = []
        self.crashed: list[str | None] = []
        self.shutting_down = False
        self.count = 0
        self.active: list[Worker] = []
        self.scheduler = ByVictim(config)
        for _ in range(workers):
            self._start()

    def _start(self) -> None:
        worker = Worker(self.count)
        self.count += 1
        self.active.append(worker)
        self.scheduler.add_node(worker)

    def step(self, worker: Worker) -> None:
        """What the worker does next, and what the session makes of it."""
        if not worker.collected:
            worker.collected = True
            if not self.shutting_down:
                self.scheduler.add_node_collection(worker, self.tests)
                if self.scheduler.collection_is_completed:
                    self.scheduler.schedule()
        elif worker.due:
            self._run(worker)
        else:
            if worker in self.scheduler.nodes:
                assert self.scheduler.remove_node(worker) is None
            self.active.remove(worker)
        if self.scheduler.tests_finished and not self.shutting_down:
            self.shutting_down = True
            for each in self.scheduler.nodes:
                each.shutdown()

    def _run(self, worker: Worker) -> None:
        name = self.tests[worker.due[0]]
        assert name not in self.ran
        self.ran.append(name)
        if name in self.deadly:
            self.crashed.append(self.scheduler.remove_node(worker))
            self.active.remove(worker)
            self.shutting_down = False
            self._start()
        else:
            self.scheduler.mark_test_complete(worker, worker.due.pop(0))


@given(st.data())
def test_every_test_runs_once_whoever_dies(data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    tests = [
        f"test_bench.py::test_case[{group}-{at}]@{group}" for group, size in enumerate(groups) for at in range(size)
    ]
    deadly = data.draw(st.sets(st.sampled_from(tests)))
    played = Controller(tests, deadly, data.draw(st.integers(1, 3)))
    while played.active:
        ready = [worker for worker in played.active if not worker.waits]
        if not ready:
            pytest.fail(f"all workers wait; {len(played.ran)} of {len(tests)} tests have run")
        played.step(data.draw(st.sampled_from(ready)))
    assert sorted(played.ran) == sorted(tests)
    assert sorted(map(str, played.crashed)) == sorted(deadly)
