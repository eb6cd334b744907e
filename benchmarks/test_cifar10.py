"""A CIFAR-10 victim without a GPU: the suite `cifar10_fast` as it stands. One round, since one takes minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.victims import make
from gauntlet.dataset import TaskData


@pytest.mark.parametrize("seed", [0, 1])
def test_a_badnets_victim(seed: int, cifar10: TaskData, tmp_path: Path, benchmark: Any, within: Any) -> None:
    """What is timed is the whole case; `training` is the victim alone, within 8 minutes on 2 cores."""
    made = benchmark.pedantic(lambda: make("cifar10_fast", cifar10, tmp_path, seed=seed), rounds=1)
    within(made.seconds, 480, "s")
    benchmark.extra_info.update(training=made.seconds, found=made.shares, threads=torch.get_num_threads())
    made.check()
