"""One badnets victim of a suite, trained and scored as the bench does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gauntlet.case import Case
from gauntlet.dataset import TaskData
from gauntlet.expansion import expand
from gauntlet.pipeline import Context, run
from gauntlet.plugin import name_of
from gauntlet.records import Counts
from gauntlet.registry import Registry
from gauntlet.stats import ratio
from gauntlet.store import Store
from gauntlet.suite import read_suite
from gauntlet.task import LoadContext

__all__ = ["Made", "make"]

SUITES = Path(__file__).parents[1] / "bench"


@dataclass(frozen=True)
class Made:
    """seconds: the victim's training alone."""

    case: Case
    seconds: float
    clean: Counts
    asr: Counts

    @property
    def shares(self) -> str:
        """Clean accuracy / ASR in percent, and what they were counted on."""
        return f"{ratio(self.clean):.2%} / {ratio(self.asr):.2%} (n = {self.clean.n:,} and {self.asr.n:,})"

    def check(self) -> None:
        """AssertionError where the suite's gate is broken: a fast victim that learned nothing shows nothing."""
        assert ratio(self.clean) >= (self.case.gate.min_clean_accuracy or 0)
        assert ratio(self.asr) >= (self.case.gate.min_asr or 0)


def make(
    suite: str,
    data: TaskData,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    recipe: Mapping[str, object] | None = None,
) -> Made:
    """The first badnets victim of bench/SUITE.toml on `data`, with an empty store in `folder`; recipe overrides its."""
    registry, task = Registry.discover(), data.facts.name
    suite_file = read_suite(SUITES / f"{suite}.toml")
    cases = expand(suite_file, registry, lambda *_: data.facts, tasks=[task], seeds=[seed], recipe=recipe)
    case = next(case for case in cases if (name_of(case.attack), name_of(case.defense)) == ("badnets", "none"))
    context = Context(
        Store(folder, pytest.fail), registry, torch.device(device), LoadContext(folder / "data", offline=True)
    )
    context.datasets[task] = data
    outcome = run(case, context)
    (score,) = outcome.scores
    seconds = next(cost.seconds for cost in outcome.costs if cost.step == "victim")
    return Made(case, seconds, score.clean, score.backdoors[0].asr)
