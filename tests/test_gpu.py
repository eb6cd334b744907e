"""Whole cases on a stand-in for a GPU: that nothing meets there which CUDA keeps apart. A new part is covered by being
there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gauntlet.assembly import wrap
from gauntlet.errors import NotApplicableError
from gauntlet.facts import TaskFacts
from gauntlet.images import ImageSet
from gauntlet.pipeline import Context, run
from gauntlet.plugin import Kind
from gauntlet.randomness import beside
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.store import Store
from gauntlet.training import fit
from tests.sample_cases import CaseMaker
from tests.stand_in_gpu import MismatchError, stand_in_gpu

REGISTRY = Registry.discover()
ATTACKS, DEFENSES = (sorted(REGISTRY.classes(kind)) for kind in (Kind.ATTACK, Kind.DEFENSE))
FROM_FILES = ("keras_model", "onnx_model")
MODELS = sorted(set(REGISTRY.classes(Kind.MODEL)) - set(FROM_FILES))
BRIEF = Recipe(epochs=0.15, batch_size=64)
FEDERATION = {"users": 10, "sampled": 5, "rounds": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "autoencoder_detector": {"steps": 5},
    "neural_cleanse": {"steps": 20, "epochs": 1},
    "sentinet": {"blends": 4},
    "strip": {"blends": 10},
    "federated_blind": FEDERATION,
    "federated_none": FEDERATION,
}
"""Of those that take long as they are."""


@pytest.fixture
def gpu(context: Context, make_case: CaseMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """The session's context with an empty store, on the device."""
    context.data(make_case("none"))
    own = dataclasses.replace(context, store=Store(tmp_path, _fail), datasets=dict(context.datasets))
    with stand_in_gpu(monkeypatch) as stand_in:
        yield dataclasses.replace(own, device=stand_in.device)


def _fail(warning: str) -> None:
    raise AssertionError(warning)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack(name: str, gpu: Context, make_case: CaseMaker) -> None:
    case = make_case(name, attack_settings=SETTINGS.get(name), recipe=BRIEF)
    made = run(case, gpu)
    assert made.scores[0].clean.n
    # Once more, from what the store has.
    assert run(case, dataclasses.replace(gpu)).scores == made.scores


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense(name: str, gpu: Context, make_case: CaseMaker) -> None:
    attack = "federated_blind" if name.startswith("fl_") else "badnets"
    case = make_case(
        attack, name, attack_settings=SETTINGS.get(attack), defense_settings=SETTINGS.get(name), recipe=BRIEF
    )
    try:
        assert run(case, gpu).scores[0].clean.n
    except NotApplicableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", MODELS)
def test_a_model(name: str, gpu: Context, make_case: CaseMaker) -> None:
    data = gpu.data(make_case("none"))
    side = max(32, *data.facts.shape[1:])
    facts = dataclasses.replace(data.facts, shape=(3, side, side))
    network = wrap(REGISTRY.build(Kind.MODEL, name, {}), facts, (0.5,) * 3, (0.5,) * 3).place(gpu.device)
    logits = network(torch.rand(2, 3, side, side, device=gpu.device))
    logits.sum().backward()
    assert logits.is_cuda
    assert all(parameter.grad.is_cuda for parameter in network.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("optimizer", ["adam", "amsgrad", "sgd", "rmsprop", "adagrad", "muon"])
def test_an_optimizer(optimizer: str, gpu: Context, make_case: CaseMaker) -> None:
    settings: dict[str, Any] = {"optimizer": optimizer}
    recipe = dataclasses.replace(
        BRIEF,
        **settings,
        augmentation=("crop", "alternating_flip"),
        validation_split=0.1,
        early_stopping=True,
        label_smoothing=0.1,
    )
    assert run(make_case("badnets", model="shallow_net", recipe=recipe), gpu).scores[0].clean.n


@pytest.mark.parametrize("name", ["simple_cnn", "fast_resnet"])
def test_no_step_of_a_training_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (48,), generator=generator)
    poisoned = ImageSet.of(images, labels).replaced(torch.arange(9), images[9:18], labels[9:18])
    facts = TaskFacts("mini", (3, 32, 32), tuple("0123456789"), (5,) * 10, (9,) * 10, (9,) * 10, "", "")

    def waits(batch_size: int) -> int:
        network = wrap(REGISTRY.build(Kind.MODEL, name, {}), facts, (0.5,) * 3, (0.5,) * 3)
        recipe = Recipe(epochs=1, batch_size=batch_size, optimizer="muon", augmentation=("crop", "flip"))
        before = stand_in.waits
        fit(network, poisoned, recipe, seed=0, purpose=("training",), device=stand_in.device)
        return stand_in.waits - before

    with stand_in_gpu(monkeypatch) as stand_in:
        assert waits(8) == waits(24)


def test_a_generator_beside_another_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first = torch.Generator().manual_seed(3)
    assert beside(first, torch.device("cpu")) is first
    with stand_in_gpu(monkeypatch) as stand_in:
        second, third = (torch.Generator().manual_seed(seed) for seed in (3, 4))
        draws = [
            torch.rand(5, generator=beside(each, stand_in.device), device=stand_in.device).cpu()
            for each in (second, second, torch.Generator().manual_seed(3), third)
        ]
    assert draws[0].equal(draws[2])
    assert not draws[0].equal(draws[1])
    assert not draws[0].equal(draws[3])


# ------------------------------------------------------------------------------------------------ the stand-in itself


def test_a_set_on_the_device_stays_there(gpu: Context) -> None:
    images = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8)
    moved = ImageSet.of(images, torch.arange(6)).to(gpu.device)
    found = moved.materialised().images(torch.tensor([4, 1], device=gpu.device))
    assert found.is_cuda
    assert found.cpu().equal(images[[4, 1]])


def test_what_cuda_refuses_is_refused(gpu: Context) -> None:
    here, there = torch.ones(3), torch.ones(3, device=gpu.device)
    assert (there + 1).is_cuda
    assert (there * torch.tensor(2.0))[torch.tensor([0])].is_cuda
    for refused in (
        lambda: here + there,
        lambda: here[there.long()],
        lambda: torch.stack([here, there]),
        lambda: there.index_fill(0, torch.tensor([1]), 0),
        there.numpy,
        lambda: torch.rand(3, generator=torch.Generator(), device=gpu.device),
        lambda: here.normal_(generator=torch.Generator(device=gpu.device)),
    ):
        with pytest.raises(MismatchError):
            refused()
