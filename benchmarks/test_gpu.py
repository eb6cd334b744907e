"""What a GPU makes of it: its own rates, CIFAR-10 victims against them, and the MNIST suite. Skips without CUDA.

A minute or two each but for the recipe of 100 epochs; `-k "not reference"` leaves that out.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import torch

from benchmarks.conftest import ROOT
from benchmarks.victims import Made, make
from gauntlet.costs import forward_flops
from gauntlet.dataset import TaskData

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

BACKWARD = 3
"""Floating-point operations of a training step, in those of its forward pass."""
SHORT: dict[str, dict[str, object]] = {
    "sgd, 30 epochs": {"epochs": 30, "batch_size": 512, "learning_rate": 0.4, "schedule": "one_cycle"},
    "muon, 16 epochs": {
        "epochs": 16,
        "batch_size": 500,
        "optimizer": "muon",
        "learning_rate": 0.1,
        "rest_rate": 0.01,
        "momentum": 0.6,
        "weight_decay": 0.1,
        "schedule": "linear",
        "label_smoothing": 0.1,
    },
}
"""Candidates for what 100 epochs of the field's recipe reach, not tuned: no GPU was at hand."""

Figure = Callable[[str], None]


@pytest.fixture(scope="module")
def products() -> float:
    """FLOP/s of bf16 products of random matrices of 8,192."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / _seconds(lambda: left @ right)


def _seconds(work: Callable[[], object], rounds: int = 20) -> float:
    """The median of what `work` takes on the device."""
    found: list[float] = []
    for _ in range(rounds + 3):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begun.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        found.append(begun.elapsed_time(ended) / 1000)
    return median(found[3:])


def test_the_device(products: float, figure: Figure) -> None:
    source, target = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    copied = 2 * source.numel() / _seconds(lambda: target.copy_(source))
    figure(
        f"{torch.cuda.get_device_name()}: bf16 products {products / 1e12:,.0f} TFLOP/s, copies {copied / 1e9:,.0f} GB/s"
    )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_fast_victim(
    compiled: bool, cifar10: TaskData, tmp_path: Path, products: float, within: Any, figure: Figure
) -> None:
    """Two in one process: the first pays for kernels that are loaded, or compiled, once."""
    for seed in (0, 1):
        with utilisation() as busy:
            made = make("cifar10_fast", cifar10, tmp_path, seed=seed, device="cuda", recipe={"compile": compiled})
        figure(_told(made, cifar10, products, busy()))
    within(made.seconds, 5, "s")
    made.check()


@pytest.mark.parametrize("name", SHORT)
def test_a_short_recipe(
    name: str, cifar10: TaskData, tmp_path: Path, products: float, within: Any, figure: Figure
) -> None:
    """Beside `test_the_reference`: its clean accuracy within 0.5 points, ASR at least 99 %."""
    with utilisation() as busy:
        made = make("cifar10", cifar10, tmp_path, device="cuda", recipe={"compile": True, **SHORT[name]})
    figure(_told(made, cifar10, products, busy()))
    within(made.seconds, 60, "s")
    made.check()


def test_the_reference(cifar10: TaskData, tmp_path: Path, products: float, figure: Figure) -> None:
    with utilisation() as busy:
        made = make("cifar10", cifar10, tmp_path, device="cuda", recipe={"compile": True})
    figure(_told(made, cifar10, products, busy()))
    made.check()


def test_the_mnist_suite(tmp_path: Path, data_folder: Path, within: Any, figure: Figure) -> None:
    """The whole command, from an empty store. Gates were set on a CPU: a case that breaks one is told, not asserted."""
    places = [f"--store={tmp_path / 'store'}", f"--results={tmp_path / 'results'}", f"--data-dir={data_folder}"]
    command = [sys.executable, "-m", "pytest", "bench", "--suite=mnist", "--device=cuda", "-q", *places]
    begun = time.perf_counter()
    with utilisation() as busy:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    within(time.perf_counter() - begun, 60, "s")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    figure(f"{done.stdout.strip().splitlines()[-1]}; busy {busy():.0f} %")


def _told(made: Made, data: TaskData, products: float, busy: float) -> str:
    recipe = made.case.recipe
    images = recipe.epochs * len(data.training) / made.seconds
    rate = BACKWARD * forward_flops(made.case.architecture, data.facts) * images
    return (
        f"{made.seconds:.1f} s, {images:,.0f} images a second, {rate / 1e12:.1f} TFLOP/s, {rate / products:.0%} of "
        f"bf16 products, busy {busy:.0f} %: {made.shares}"
    )


@contextmanager
def utilisation() -> Iterator[Callable[[], float]]:
    """The device's own account of its utilisation inside, a mean in percent; NaN where nvidia-smi tells nothing."""
    found: list[float] = []
    over = threading.Event()

    def ask() -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not over.wait(0.25):
            with suppress(OSError, ValueError, subprocess.SubprocessError):
                told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
                found.append(float(re.split(r"\s", told.strip())[0]))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        yield lambda: mean(found) if found else float("nan")
    finally:
        over.set()
        asking.join(10)
