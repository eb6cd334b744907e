"""Training-set filters on 20,000 poisoned MNIST images, from images to verdict: against ART's detectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from gauntlet.assembly import wrap
from gauntlet.dataset import TaskData
from gauntlet.defense import Filter
from gauntlet.network import Network
from gauntlet.plugin import Kind
from gauntlet.poisoning import Poisoning
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.training import features, fit
from gauntlet.views import AttackerView, DefenderView

COUNT = 20_000
CPU = torch.device("cpu")
REGISTRY = Registry.discover()
RECIPE = Recipe(epochs=2, batch_size=256, learning_rate=4e-3, schedule="one_cycle")


class Layers(nn.Module):
    """The same network for ART, which reads the layer that was registered last: the last hidden one."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        layers = list(network.body.children())
        self.output = layers[-1]
        self.hidden = nn.Sequential(network.normalise, *layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.hidden(images))
        return logits


@dataclass(frozen=True, eq=False)
class Victim:
    """A poisoned model as each side gets it."""

    view: DefenderView
    poisoned: Tensor
    classifier: PyTorchClassifier
    x: Any
    y: Any

    def ours(self, defense: Filter) -> Tensor:
        """bool [N]: removed."""
        return ~defense.keep(self.view)

    def theirs(self, detector: Any, **settings: Any) -> Tensor:
        """The same by ART."""
        _, clean = detector(self.classifier, self.x, self.y, **settings).detect_poison()
        # Every call leaves one more hook behind, which would make the next one slower.
        self.classifier.model.hidden._forward_hooks.clear()
        return ~torch.tensor(clean, dtype=torch.bool)

    def rates(self, removed: Tensor) -> tuple[float, float]:
        """How much of the poison is found, and how much else."""
        return float(removed[self.poisoned].float().mean()), float(removed[~self.poisoned].float().mean())


@pytest.fixture(scope="module")
def victim(mnist: TaskData) -> Victim:
    """simple_cnn on badnets as the papers mount it: each class poisoned from one other class, a tenth of it."""
    attack = REGISTRY.build(Kind.ATTACK, "badnets", {"mode": "all_to_all"})
    architecture = REGISTRY.build(Kind.MODEL, "simple_cnn", {})
    training = mnist.training.subset(torch.arange(COUNT))
    facts = replace(mnist.facts, train_counts=tuple(torch.bincount(training.labels, minlength=10).tolist()))
    common: dict[str, Any] = {
        "facts": facts,
        "architecture": architecture,
        "recipe": RECIPE,
        "seed": 0,
        "device": CPU,
        "tools": None,
    }
    assert isinstance(attack, Poisoning)
    poison = attack.poison(AttackerView(**common, training=training))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = wrap(architecture, facts, mnist.mean, mnist.std).place(CPU)
    fit(network, poison.training, RECIPE, seed=0, purpose=("training",), device=CPU)
    delivered = poison.training.materialised()
    view = DefenderView(
        **common,
        victim=network,
        reserve=mnist.reserve(0),
        delivered=delivered,
        represent=lambda images: features(network, images, RECIPE, CPU),
    )
    classifier = PyTorchClassifier(
        Layers(network), nn.CrossEntropyLoss(), facts.shape, facts.classes, clip_values=(0, 1)
    )
    x = delivered.images().numpy().astype(np.float32) / 255
    return Victim(view, poison.poisoned, classifier, x, np.eye(10, dtype=np.float32)[delivered.labels])


def _clustering(victim: Victim) -> Tensor:
    return victim.theirs(ActivationDefence)


def _spectral(victim: Victim) -> Tensor:
    return victim.theirs(SpectralSignatureDefense, expected_pp_poison=0.1)


@pytest.mark.parametrize(
    ("name", "other", "goal"),
    [("activation_clustering", _clustering, 3), ("spectral_signatures", _spectral, 7)],
    ids=["activation_clustering", "spectral_signatures"],
)
@pytest.mark.parametrize("way", ["from images", "features given"])
def test_20000_mnist_images(
    name: str, other: Callable[[Victim], Tensor], goal: float, way: str, victim: Victim, duel: Any
) -> None:
    """`features given`: ours where another defense of the same victim has computed them; ART always computes them."""
    defense = REGISTRY.build(Kind.DEFENSE, name, {})
    if way == "features given":
        known = victim.view.training_features
        victim = replace(victim, view=replace(victim.view, represent=lambda _: known))
    np.random.seed(0)
    ours, theirs = victim.rates(victim.ours(defense)), victim.rates(other(victim))
    # ART's clustering condemns a cluster of every class, so its false alarms can only be more.
    assert ours[0] >= theirs[0] - 0.01
    assert ours[1] <= theirs[1] + 0.01
    assert ours[0] > 0.95
    duel(partial(victim.ours, defense), partial(other, victim), goal=goal)
