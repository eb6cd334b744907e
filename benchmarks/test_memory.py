"""Peak memory of a whole case: what the data add to what the same case needs on a few images of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gauntlet.case import Case
from gauntlet.compute import keep_freed_memory
from gauntlet.dataset import TaskData, prepare
from gauntlet.guard import Sealed
from gauntlet.images import ImageSet
from gauntlet.measure import measured
from gauntlet.pipeline import Context, run
from gauntlet.plugin import Kind
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.store import Store
from gauntlet.task import LoadContext

FEW = 1000
MIB = 2**20


def _few(images: ImageSet) -> ImageSet:
    return images.subset(torch.arange(min(FEW, len(images)))).materialised()


def _shortened(data: TaskData) -> TaskData:
    return replace(data, training=_few(data.training), test=Sealed("the test images", _few(data.test.open())))


def child(task: str, store: str, folder: str, model: str, defense: str, part: str, seed: str) -> int:
    """Run the case and print the peak resident memory, in bytes, of this process."""
    keep_freed_memory()
    registry = Registry.discover()
    load = LoadContext(Path(folder), offline=True)
    context = Context(Store(Path(store), sys.exit), registry, torch.device("cpu"), load)
    data = prepare(registry.task(task), task, context.store, load)
    context.datasets[task] = _shortened(data) if part == "few" else data
    case = Case(
        suite="memory",
        task_name=task,
        task=registry.task(task),
        architecture=registry.build(Kind.MODEL, model, {}),
        attack=registry.build(Kind.ATTACK, "badnets", {}),
        defense=registry.build(Kind.DEFENSE, defense, {}),
        # As many steps on a few images as on all of them would be too many: memory is the same after one pass.
        recipe=Recipe(epochs=1 if part == "few" else 0.2, batch_size=128),
        reserve=500,
        seeds=(int(seed),),
    )
    with measured("cpu") as cost:
        run(case, context)
    sys.stdout.write(f"{cost.peak_memory}\n")
    return 0


@pytest.mark.parametrize("defense", ["fine_tuning", "spatial_smoothing", "clean_retrain"])
@pytest.mark.parametrize(("name", "model"), [("mnist", "simple_cnn"), ("cifar10", "simple_cnn")])
def test_a_case(
    name: str, model: str, defense: str, request: Any, tmp_path: Path, data_folder: Path, within: Any
) -> None:
    data: TaskData = request.getfixturevalue(name)
    size = data.training.base.nbytes + data.reserve_pool.base.nbytes + data.test.open().base.nbytes
    task, found = data.facts.name, {}
    for part in ("few", "all"):
        command = [sys.executable, __file__, task, str(tmp_path / part), str(data_folder), model, defense, part]
        # Once to prepare the task, which may read it as it likes; the second process maps it.
        for seed in ("0", "1"):
            done = subprocess.run([*command, seed], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        found[part] = int(done.stdout)
    within((found["all"] - found["few"]) / size, 2.0, f"times the data's {size / MIB:.0f} MiB")


if __name__ == "__main__":
    sys.exit(child(*sys.argv[1:]))
