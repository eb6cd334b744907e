"""A CIFAR-10 victim without a GPU: the suite `cifar10_fast` as it stands. One round, since one takes minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gauntlet.dataset import TaskData
from gauntlet.expansion import expand
from gauntlet.pipeline import Context, run
from gauntlet.plugin import name_of
from gauntlet.registry import Registry
from gauntlet.stats import ratio
from gauntlet.store import Store
from gauntlet.suite import read_suite
from gauntlet.task import LoadContext

SUITE = Path(__file__).parents[1] / "bench/cifar10_fast.toml"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_badnets_victim(seed: int, cifar10: TaskData, tmp_path: Path, benchmark: Any, within: Any) -> None:
    """What is timed is the whole case; `training` is the victim alone, within 8 minutes on 2 cores."""
    registry, task = Registry.discover(), cifar10.facts.name
    cases = expand(read_suite(SUITE), registry, lambda *_: cifar10.facts, tasks=[task], seeds=[seed])
    (case,) = (case for case in cases if (name_of(case.attack), name_of(case.defense)) == ("badnets", "none"))
    context = Context(Store(tmp_path, pytest.fail), registry, torch.device("cpu"), LoadContext(tmp_path, offline=True))
    context.datasets[task] = cifar10
    outcome = benchmark.pedantic(lambda: run(case, context), rounds=1)
    (score,) = outcome.scores
    clean, asr = score.clean, score.backdoors[0].asr
    training = next(cost.seconds for cost in outcome.costs if cost.step == "victim")
    within(training, 480, "s")
    benchmark.extra_info.update(
        training=training,
        clean_accuracy=ratio(clean),
        asr=ratio(asr),
        n=(clean.n, asr.n),
        threads=torch.get_num_threads(),
    )
    assert ratio(clean) >= (case.gate.min_clean_accuracy or 0)
    assert ratio(asr) >= (case.gate.min_asr or 0)
