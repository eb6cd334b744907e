"""A defender's view of small real digits, for tests that need no pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.datasets import load_digits

from gauntlet.architecture import Architecture
from gauntlet.facts import TaskFacts
from gauntlet.images import ImageSet
from gauntlet.network import Network
from gauntlet.objective import Objective
from gauntlet.randomness import seeded
from gauntlet.recipe import Recipe
from gauntlet.training import fit
from gauntlet.views import DefenderView, Draws
from models.le_net import LeNet

__all__ = ["CPU", "RECIPE", "Tools", "digits", "facts", "small_victim", "view_on"]

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=6, batch_size=64, learning_rate=5e-3, precision="fp32")


@dataclass
class Tools:
    """The engine's training without its store; keeps what each training was asked for."""

    trainings: list[dict[str, Any]] = field(default_factory=list)

    def new_network(self, architecture: str = "") -> Network:
        raise NotImplementedError

    def train(
        self,
        images: ImageSet,
        *purpose: str,
        recipe: Recipe | None = None,
        objective: Objective | None = None,
        network: Network | None = None,
        architecture: str = "",
        shared: bool = False,
    ) -> Network:
        assert network is not None
        before = {name: value.clone() for name, value in network.state_dict().items()}
        self.trainings.append({"images": images, "purpose": purpose, "recipe": recipe, "before": before})
        fit(network, images, recipe or RECIPE, seed=5, purpose=purpose, device=CPU, objective=objective)
        return network


def digits(part: slice) -> ImageSet:
    """Real digits of 8x8 pixels."""
    data = load_digits()
    images = torch.tensor(data.images * 15, dtype=torch.uint8)[:, None][part]
    return ImageSet.of(images, torch.tensor(data.target)[part])


def facts(shape: tuple[int, int, int], classes: int = 10) -> TaskFacts:
    """Of a task whose images and counts nobody looks at."""
    counts = (1,) * classes
    return TaskFacts("mini", shape, tuple(map(str, range(classes))), counts, counts, counts, "", "")


def small_victim() -> Network:
    """le_net on 1,000 of the small digits, in eval mode; work on a copy."""
    with seeded(0, "initialisation"):
        network = Network(LeNet().build((1, 8, 8), 10), [0.3], [0.4], "dropout2", "conv2")
    fit(network, digits(slice(0, 1000)), RECIPE, seed=0, purpose=("training",), device=CPU)
    return network.eval()


def view_on(victim: Network, reserve: ImageSet, classes: int = 10, seed: int = 5) -> DefenderView:
    """What a defender sees of a handed-over victim."""
    return DefenderView(
        facts=facts(reserve.shape, classes),
        architecture=Architecture(),
        recipe=RECIPE,
        draws=Draws(seed),
        device=CPU,
        tools=Tools(),
        victim=victim.eval(),
        reserve=reserve,
        deliver=None,
        represent=lambda images: images.images().flatten(1).float(),
    )
