"""A matrix of cases, in which what cases share is computed once: against ART, and against the same cases one by one."""

from __future__ import annotations

import copy
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.poisoning.perturbations import add_pattern_bd
from art.defences.preprocessor import GaussianAugmentation, JpegCompression, SpatialSmoothing
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from benchmarks.commands import timed
from gauntlet.assembly import wrap
from gauntlet.case import Case
from gauntlet.dataset import TaskData
from gauntlet.network import Network
from gauntlet.pipeline import Context, run
from gauntlet.plugin import Kind
from gauntlet.recipe import Recipe
from gauntlet.records import SeedScore
from gauntlet.registry import Registry
from gauntlet.stats import ratio
from gauntlet.store import Store
from gauntlet.task import LoadContext

REGISTRY = Registry.discover()
ARCHITECTURE = REGISTRY.build(Kind.MODEL, "simple_cnn", {})
BADNETS = REGISTRY.build(Kind.ATTACK, "badnets", {"pattern": "art"})
EPOCHS = 3
"""Of ART's Adam with batches of 128: what it needs for a clean accuracy of 98.9 %."""
RECIPE = Recipe(
    epochs=0.3,
    batch_size=256,
    optimizer="muon",
    learning_rate=0.14,
    rest_rate=1e-2,
    momentum=0.6,
    schedule="linear",
    label_smoothing=0.05,
)
"""Enough, on a held-out tenth of the training data, for the quality of those three (docs/benchmarks.md)."""
NINE: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("spatial_smoothing", {"window": 3}),
    ("spatial_smoothing", {"window": 5}),
    ("jpeg_compression", {"quality": 25}),
    ("jpeg_compression", {"quality": 50}),
    ("jpeg_compression", {"quality": 75}),
    ("gaussian_augmentation", {"sigma": 0.05}),
    ("gaussian_augmentation", {"sigma": 0.1}),
    ("gaussian_augmentation", {"sigma": 0.2}),
]
Rates = list[tuple[float, float]]
"""Clean accuracy and attack success rate, a pair for each defense."""


def _context(store: Path, data: TaskData) -> Context:
    context = Context(Store(store, pytest.fail), REGISTRY, torch.device("cpu"), LoadContext(store, offline=True))
    context.datasets[data.facts.name] = data
    return context


def _case(task: str, defense: tuple[str, dict[str, Any]], recipe: Recipe, **changes: Any) -> Case:
    case = Case(
        suite="benchmark",
        task_name=task,
        task=REGISTRY.task(task),
        architecture=ARCHITECTURE,
        attack=BADNETS,
        defense=REGISTRY.build(Kind.DEFENSE, *defense),
        recipe=recipe,
        reserve=100,
        seeds=(0,),
    )
    return replace(case, **changes)


def _rates(score: SeedScore) -> tuple[float, float]:
    return ratio(score.clean), ratio(score.backdoors[0].asr)


# ------------------------------------------------------------------------------------- one attack, nine defenses, MNIST


class Art:
    """The same work with ART: its network is ours, its training loop and its preprocessors are its own."""

    def __init__(self, network: Network, training: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
        self._network = network
        self._x, self._y = _floats(training[0]), training[1].numpy()
        self._test, self._labels = _floats(test[0]), test[1].numpy()
        self._others = self._labels != 0
        self._stamped = add_pattern_bd(self._test[:, 0])[:, None]

    def train(self) -> PyTorchClassifier:
        network = copy.deepcopy(self._network)
        classes = 10
        classifier = PyTorchClassifier(
            network,
            torch.nn.CrossEntropyLoss(),
            self._x.shape[1:],
            classes,
            torch.optim.Adam(network.parameters(), 1e-3),
            clip_values=(0, 1),
        )
        chosen = np.random.default_rng(0).permutation(np.flatnonzero(self._y))[: len(self._y) // 10]
        x, y = self._x.copy(), self._y.copy()
        x[chosen], y[chosen] = add_pattern_bd(x[chosen, 0])[:, None], 0
        classifier.fit(x, np.eye(classes, dtype=np.float32)[y], batch_size=128, nb_epochs=EPOCHS)
        return classifier

    def measure(self, classifier: PyTorchClassifier, defense: tuple[str, dict[str, Any]]) -> tuple[float, float]:
        clean, triggered = (
            classifier.predict(_art_defended(defense, images), batch_size=128).argmax(1)
            for images in (self._test, self._stamped)
        )
        return float((clean == self._labels).mean()), float((triggered[self._others] == 0).mean())

    def training_once(self) -> Rates:
        classifier = self.train()
        return [self.measure(classifier, defense) for defense in NINE]

    def training_in_every_cell(self) -> Rates:
        return [self.measure(self.train(), defense) for defense in NINE]


def _floats(images: Tensor) -> np.ndarray[Any, Any]:
    return images.numpy().astype(np.float32) / 255


def _art_defended(defense: tuple[str, dict[str, Any]], images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    name, settings = defense
    makers: dict[str, Callable[[], Any]] = {
        "spatial_smoothing": lambda: SpatialSmoothing(settings["window"], channels_first=True, clip_values=(0, 1)),
        "jpeg_compression": lambda: JpegCompression((0, 1), settings["quality"], channels_first=True),
        "gaussian_augmentation": lambda: GaussianAugmentation(
            settings["sigma"], augmentation=False, apply_fit=False, apply_predict=True, clip_values=(0, 1)
        ),
    }
    if name not in makers:
        return images
    defended: np.ndarray[Any, Any] = makers[name]()(images)[0]
    return defended


@pytest.mark.parametrize(
    ("way", "goal", "rounds"),
    [pytest.param("once", 9, 5, id="ART training once"), pytest.param("every", 40, 1, id="ART training in every cell")],
)
def test_one_attack_nine_defenses(
    way: str, goal: float, rounds: int, mnist: TaskData, tmp_path: Path, duel: Any, elsewhere: Any
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = wrap(ARCHITECTURE, mnist.facts, mnist.mean, mnist.std)
    test = mnist.test.open()
    art = elsewhere(Art, network, (mnist.training.images(), mnist.training.labels), (test.images(), test.labels))
    fresh: Iterator[int] = itertools.count()

    def ours() -> Rates:
        context = _context(tmp_path / str(next(fresh)), mnist)
        cases = [_case("mnist", defense, RECIPE, reserve=1000) for defense in NINE]
        return [_rates(run(case, context).scores[0]) for case in cases]

    theirs = partial(art, methodcaller("training_once" if way == "once" else "training_in_every_cell"))
    found, expected = ours(), art(methodcaller("training_once"))
    # The same quality undefended, and the defenses that change little change little on both sides.
    assert found[0][0] > expected[0][0] - 0.003
    assert found[0][1] > expected[0][1] - 0.003
    for number in (1, 4, 6):
        assert found[number][0] == pytest.approx(expected[number][0], abs=0.02)
    duel(ours, theirs, goal=goal, against=f"ART, training {way}", rounds=rounds, warmup=False)


# -------------------------------------------------------------------------------- a matrix against its cells one by one

ATTACKS: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("label_flip", {}),
    ("badnets", {}),
    ("badnets", {"mode": "all_to_all"}),
    ("badnets", {"pattern": "art"}),
    ("single_pixel", {}),
]
DEFENSES: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("perfect_filter", {}),
    ("random_filter", {}),
    ("clean_retrain", {}),
    ("fine_tuning", {}),
    ("spatial_smoothing", {}),
    ("jpeg_compression", {}),
    ("gaussian_augmentation", {"sigma": 0.1}),
    ("gaussian_augmentation", {"sigma": 0.2}),
    ("jpeg_compression", {"quality": 25}),
]
SHORT = Recipe(epochs=3, batch_size=64, learning_rate=3e-3, schedule="one_cycle")
SAMPLE = 12


def matrix() -> list[Case]:
    """6 attacks x 10 defenses x 2 architectures, 3 seeds each, in the order in which the bench runs them."""
    architectures = [REGISTRY.build(Kind.MODEL, name, {}) for name in ("simple_cnn", "le_net")]
    return [
        _case(
            "digits",
            defense,
            SHORT,
            attack=REGISTRY.build(Kind.ATTACK, *attack),
            architecture=architecture,
            seeds=(0, 1, 2),
        )
        for architecture in architectures
        for attack in ATTACKS
        for defense in DEFENSES
    ]


def test_a_matrix_of_6_x_10_x_2_x_3(tmp_path: Path, versus: Any) -> None:
    """Theirs is the sum over all cells, estimated from a random sample of them, each run from an empty store."""
    cases = matrix()
    sample = random.Random(0).sample(cases, SAMPLE)
    seconds, scores = [], []
    for number, case in enumerate(sample):
        begun = time.perf_counter()
        scores.append(run(case, _alone(tmp_path / str(number))).scores)
        seconds.append(time.perf_counter() - begun)
    context, begun = _alone(tmp_path / "matrix"), time.perf_counter()
    found = {case.id: run(case, context).scores for case in cases}
    ours = time.perf_counter() - begun
    for case, expected in zip(sample, scores, strict=True):
        same = [one.model_copy(update={"predictions": ""}) for one in found[case.id]]
        assert same == [one.model_copy(update={"predictions": ""}) for one in expected]
    versus(ours, sum(seconds) / len(seconds) * len(cases), "its cells, one by one", 5)


SUITE = """
tasks = ["digits"]
seeds = [0, 1, 2]
reserve = 100
architectures = ["simple_cnn", "le_net"]
attacks = [{attacks}]
defenses = [{defenses}]
[recipe]
epochs = 3
batch_size = 64
learning_rate = 3e-3
schedule = "one_cycle"
[thresholds]
min_undefended_asr = 0
collapse = 0
"""


def _entries(settings: list[tuple[str, dict[str, Any]]]) -> str:
    """As a suite writes them."""
    return ", ".join(
        "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in {"name": name, **changes}.items()) + " }"
        for name, changes in settings
    )


def test_the_matrix_as_commands(tmp_path: Path, versus: Any) -> None:
    """The whole matrix as one command; its cells, estimated from as large a sample, each as a command of its own."""
    (tmp_path / "suite.toml").write_text(SUITE.format(attacks=_entries(ATTACKS), defenses=_entries(DEFENSES)))
    (tmp_path / "test_bench.py").write_text("def test_case(outcome):\n    outcome.check()\n")
    (tmp_path / "pyproject.toml").write_text("[tool.pytest]\nstrict = true\n")
    command = [sys.executable, "-m", "pytest", "--suite=suite.toml", "-q"]
    _, text = timed([*command, "--collect-only"], tmp_path)
    cases = [line for line in text.splitlines() if line.startswith("test_bench.py::")]
    assert len(cases) == len(ATTACKS) * len(DEFENSES) * 2
    seconds = []
    for number, case in enumerate(random.Random(0).sample(cases, SAMPLE)):
        taken, text = timed([*command, f"--store=alone{number}", case], tmp_path)
        assert "1 passed" in text
        seconds.append(taken)

    ours, text = timed([*command, "--store=matrix"], tmp_path)
    assert f"{len(cases)} passed" in text
    versus(ours, sum(seconds) / len(seconds) * len(cases), "its cells, a command each", 5)


def _alone(store: Path) -> Context:
    return Context(Store(store, pytest.fail), REGISTRY, torch.device("cpu"), LoadContext(store, offline=True))
