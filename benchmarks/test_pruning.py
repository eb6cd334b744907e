"""A sweep over pruned channels: against one full pass a level, with the pruned channels' weights zeroed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from gauntlet.assembly import wrap
from gauntlet.dataset import TaskData
from gauntlet.images import chunks, to_float
from gauntlet.maths.pruning import activations, last_convolution, prune, sweep
from gauntlet.network import Network
from gauntlet.plugin import Kind
from gauntlet.randomness import seeded
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.training import fit

IMAGES, AT_ONCE = 1000, 128


def trained(name: str, settings: dict[str, Any], data: TaskData) -> Network:
    with seeded(0, "initialisation"):
        network = wrap(Registry.discover().build(Kind.MODEL, name, settings), data.facts, data.mean, data.std)
    part = data.training.subset(torch.arange(5000))
    recipe = Recipe(epochs=2, batch_size=128, learning_rate=3e-3, schedule="one_cycle")
    fit(network, part, recipe, seed=0, purpose=("training",), device=torch.device("cpu"))
    return network


def full_passes(network: Network, images: Tensor, order: Tensor, levels: list[int]) -> Tensor:
    """As one does it by hand: images converted once, weights zeroed from level to level, batches of the same size."""
    pruned = deepcopy(network)
    layer = last_convolution(pruned)
    batches = [to_float(images[part]).contiguous(memory_format=torch.channels_last) for part in chunks(IMAGES, AT_ONCE)]
    found = []
    with torch.inference_mode():
        for level in levels:
            prune(layer, order[:level])
            found.append(torch.cat([pruned(batch).argmax(1) for batch in batches]))
    return torch.stack(found)


# The ratio can't exceed the number of levels: a network of 64 channels has 65.
@pytest.mark.parametrize(
    ("name", "settings", "levels", "goal", "rounds"),
    [("resnet18", {"width": 16}, 100, 80, 5), ("le_net", {}, 65, 50, 5), ("simple_cnn", {}, 33, 25, 7)],
    ids=["resnet18-width16", "le_net", "simple_cnn"],
)
def test_a_pruning_sweep(
    name: str, settings: dict[str, Any], levels: int, goal: float, rounds: int, mnist: TaskData, duel: Any
) -> None:
    network = trained(name, settings, mnist)
    images = mnist.training.images(torch.arange(5000, 5000 + IMAGES))
    labels = mnist.training.labels[5000 : 5000 + IMAGES]
    order = activations(network, images).argsort(stable=True)
    counts = list(range(levels))

    def ours() -> Tensor:
        return sweep(network, images, order, counts)

    def theirs() -> Tensor:
        return full_passes(network, images, order, counts)

    mine = ours()
    assert torch.equal(mine, theirs())
    assert (mine[0] == labels).double().mean() > 0.9
    duel(ours, theirs, goal=goal, against="full passes", rounds=rounds, warmup=False)
