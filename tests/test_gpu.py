"""Whole cases on a GPU: on a stand-in, that nothing meets there which CUDA keeps apart, and on a real one where there
is one. A new part is covered by being there.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
from gauntlet.toolbox import state_of
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


DEVICES = ("stand-in", *["cuda"] * torch.cuda.is_available())


@pytest.fixture(params=DEVICES)
def gpu(
    request: pytest.FixtureRequest,
    context: Context,
    make_case: CaseMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Context]:
    """The session's context with an empty store, on the device."""
    context.data(make_case("none"))
    own = dataclasses.replace(context, store=Store(tmp_path, _fail), datasets=dict(context.datasets))
    if request.param == "cuda":
        yield dataclasses.replace(own, device=torch.device("cuda"))
        return
    with stand_in_gpu(monkeypatch) as stand_in:
        yield dataclasses.replace(own, device=stand_in.device)


@contextmanager
def _waits(device: str, patch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How often the CPU has waited for the device inside: the stand-in counts, and CUDA warns."""
    if device == "stand-in":
        with stand_in_gpu(patch) as stand_in:
            yield lambda: stand_in.waits
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: sum("synchronizing CUDA operation" in str(each.message) for each in caught)
        finally:
            torch.cuda.set_sync_debug_mode("default")


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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["simple_cnn", "fast_resnet"])
def test_no_step_of_a_training_waits_for_the_device(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, facts = _poisoned(48)

    def train(batch_size: int) -> None:
        network = wrap(REGISTRY.build(Kind.MODEL, name, {}), facts, (0.5,) * 3, (0.5,) * 3)
        recipe = Recipe(epochs=1, batch_size=batch_size, optimizer="muon", augmentation=("crop", "flip"))
        fit(network, images, recipe, seed=0, purpose=("training",), device=torch.device("cuda"))

    with _waits(device, monkeypatch) as waits:
        # What a process does once with the device doesn't count.
        train(24)
        before = waits()
        train(24)
        between = waits()
        train(8)
        assert waits() - between == between - before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the stand-in's arithmetic is the CPU's")
@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    images, facts = _poisoned(256, side=64)
    recipe = Recipe(epochs=2, batch_size=64, augmentation=("crop", "flip"))

    def trained() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        network = wrap(REGISTRY.build(Kind.MODEL, name, {}), facts, (0.5,) * 3, (0.5,) * 3)
        fit(network, images, recipe, seed=0, purpose=("training",), device=torch.device("cuda"))
        return state_of(network)

    first, second = trained(), trained()
    assert [key for key, value in first.items() if not value.equal(second[key])] == []


def _poisoned(count: int, side: int = 32) -> tuple[ImageSet, TaskFacts]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    poisoned = ImageSet.of(images, labels).replaced(torch.arange(9), images[9:18], labels[9:18])
    facts = TaskFacts("mini", (3, side, side), tuple("0123456789"), (5,) * 10, (9,) * 10, (9,) * 10, "", "")
    return poisoned, facts


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


@pytest.mark.parametrize("device", DEVICES)
def test_what_cuda_refuses_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in_gpu(monkeypatch) if device == "stand-in" else nullcontext():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert (there + 1).is_cuda
        assert (there * torch.tensor(2.0))[torch.tensor([0])].is_cuda
        for refused in (
            lambda: here + there,
            lambda: here[there.long()],
            lambda: torch.stack([here, there]),
            lambda: there.index_fill(0, torch.tensor([1]), 0),
            there.numpy,
            lambda: torch.rand(3, generator=torch.Generator(), device="cuda"),
            lambda: here.normal_(generator=torch.Generator(device="cuda")),
        ):
            with pytest.raises(MismatchError if device == "stand-in" else (RuntimeError, TypeError, ValueError)):
                refused()
