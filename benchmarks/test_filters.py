"""Training-set filters on 20,000 poisoned MNIST images, from images to verdict: against ART's detectors."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller
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
from gauntlet.views import AttackerView, DefenderView, Draws
from tests.sample_views import Tools

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


DETECTORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "activation_clustering": (ActivationDefence, {}),
    "spectral_signatures": (SpectralSignatureDefense, {"expected_pp_poison": 0.1}),
}


class Art:
    """ART's classifier around the network, and the set as its detectors take it."""

    def __init__(self, network: Network, images: Tensor, labels: Tensor) -> None:
        shape = (images.shape[1], images.shape[2], images.shape[3])
        plain = Layers(network.to(memory_format=torch.contiguous_format))
        self._classifier = PyTorchClassifier(plain, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1))
        self._x = images.numpy().astype(np.float32) / 255
        self._y = np.eye(10, dtype=np.float32)[labels]

    def removed(self, name: str) -> Tensor:
        """bool [N]: what the detector takes for poison."""
        np.random.seed(0)
        detector, settings = DETECTORS[name]
        _, clean = detector(self._classifier, self._x, self._y, **settings).detect_poison()
        # Every call leaves one more hook behind, which would make the next one slower.
        self._classifier.model.hidden._forward_hooks.clear()
        return ~torch.tensor(clean, dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class Victim:
    """A poisoned model as a defender gets it."""

    view: DefenderView
    poisoned: Tensor

    def removed(self, defense: Filter) -> Tensor:
        """bool [N]."""
        return ~defense.keep(self.view)

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
    draws, tools = Draws(0), Tools()
    assert isinstance(attack, Poisoning)
    poison = attack.poison(AttackerView(facts, architecture, RECIPE, draws, CPU, tools, training))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = wrap(architecture, facts, mnist.mean, mnist.std).place(CPU)
    fit(network, poison.training, RECIPE, seed=0, purpose=("training",), device=CPU)
    delivered = poison.training.materialised()
    view = DefenderView(
        facts,
        architecture,
        RECIPE,
        draws,
        CPU,
        tools,
        victim=network,
        reserve=mnist.reserve(0),
        deliver=lambda: delivered,
        represent=lambda images: features(network, images, RECIPE, CPU),
    )
    return Victim(view, poison.poisoned)


@pytest.mark.parametrize(("name", "goal"), [("activation_clustering", 3), ("spectral_signatures", 7)])
@pytest.mark.parametrize("way", ["from images", "features given"])
def test_20000_mnist_images(name: str, goal: float, way: str, victim: Victim, duel: Any, elsewhere: Any) -> None:
    """`features given`: ours where another defense of the same victim has computed them; ART always computes them."""
    defense = REGISTRY.build(Kind.DEFENSE, name, {})
    delivered = victim.view.training
    art = elsewhere(Art, copy.deepcopy(victim.view.victim), delivered.images(), delivered.labels)
    theirs = partial(art, methodcaller("removed", name))
    if way == "features given":
        known = victim.view.training_features
        victim = replace(victim, view=replace(victim.view, represent=lambda _: known))
    found, expected = victim.rates(victim.removed(defense)), victim.rates(theirs())
    # ART's clustering condemns a cluster of every class, so its false alarms can only be more.
    assert found[0] >= expected[0] - 0.01
    assert found[1] <= expected[1] + 0.01
    assert found[0] > 0.95
    duel(partial(victim.removed, defense), theirs, goal=goal)
