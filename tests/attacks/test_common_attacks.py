"""Checks that every registered attack passes, whatever it is; a new attack is covered by being there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gauntlet.attack import Attack, Family, Mounted
from gauntlet.case import label
from gauntlet.dataset import TaskData
from gauntlet.images import to_float
from gauntlet.mounting import attacker_view, mount
from gauntlet.pipeline import Context, tools_for
from gauntlet.plugin import Kind
from gauntlet.poisoning import Poisoning
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.scoring import poison_counts
from gauntlet.settings import build, values
from gauntlet.testsets import stamp
from tests.sample_cases import CaseMaker

NAMES = sorted(Registry.discover().classes(Kind.ATTACK))
BRIEF = Recipe(epochs=0.2, batch_size=64)


@pytest.fixture(params=NAMES)
def attack(request: pytest.FixtureRequest, registry: Registry) -> Attack:
    built: Attack = registry.build(Kind.ATTACK, request.param, {})
    return built


@pytest.fixture
def mounted(attack: Attack, context: Context, make_case: CaseMaker) -> Mounted:
    case = dataclasses.replace(make_case("none", recipe=BRIEF), attack=attack)
    return mount(attack, tools_for(case, 0, context)).value


@pytest.fixture
def data(context: Context, make_case: CaseMaker) -> TaskData:
    return context.data(make_case("none"))


def test_trigger_is_deterministic_in_range_and_leaves_its_input_alone(attack: Attack, data: TaskData) -> None:
    for channels in (1, 3):
        images = to_float(data.test.open().images(slice(0, 32))).repeat(1, channels, 1, 1)
        before = images.clone()
        for backdoor in attack.backdoors:
            first, second = backdoor.trigger(images), backdoor.trigger(images)
            assert torch.equal(first, second)
            assert torch.equal(images, before)
            assert first.shape == images.shape
            assert first.dtype == torch.float32
            assert first.min() >= 0
            assert first.max() <= 1
            assert not torch.equal(first, images)


def test_trigger_does_not_depend_on_the_batch(attack: Attack, data: TaskData) -> None:
    images = data.test.open().images(slice(0, 16))
    for backdoor in attack.backdoors:
        alone = torch.cat([stamp(backdoor, images[row : row + 1]) for row in range(len(images))])
        assert torch.equal(stamp(backdoor, images), alone)


def test_settings_round_trip(attack: Attack) -> None:
    assert build(type(attack), values(attack), "again") == attack


def test_counts_match_the_ratio(attack: Attack, mounted: Mounted, data: TaskData) -> None:
    counts = poison_counts(mounted, data)
    assert counts.total == int(mounted.poisoned.sum()) == sum(counts.by_class)
    assert counts.train_size == len(mounted.training) == len(mounted.sources)
    assert counts.effective == counts.total
    if isinstance(attack, Poisoning):
        wanted, _ = attack.wanted(torch.tensor(data.facts.train_counts), data.facts.classes)
        assert counts.total == wanted > 0
    else:
        assert (counts.total > 0) == (attack.delivers_data and attack.family is not Family.CONTROL)


def test_only_the_poison_differs_from_the_clean_data(mounted: Mounted, data: TaskData) -> None:
    untouched = (~mounted.poisoned).nonzero().flatten()
    sources = mounted.sources[untouched]
    assert torch.equal(mounted.training.images(untouched), data.training.images(sources))
    assert torch.equal(mounted.training.labels[untouched], data.training.labels[sources])


def test_clean_label_attacks_never_change_a_label(attack: Attack, mounted: Mounted, data: TaskData) -> None:
    same = torch.equal(mounted.training.labels, data.training.labels[mounted.sources])
    assert same == (attack.family is Family.CLEAN_LABEL or not mounted.poisoned.any())


def test_no_test_image_is_in_the_poisoned_set(mounted: Mounted, data: TaskData) -> None:
    clean = data.training.images()
    own = {image.numpy().tobytes() for image in clean}
    test = {image.numpy().tobytes() for image in data.test.open().images()} - own
    delivered = {image.numpy().tobytes() for image in mounted.training.images()}
    assert not delivered & test


def test_same_seed_same_bytes(attack: Attack, mounted: Mounted, context: Context, make_case: CaseMaker) -> None:
    case = dataclasses.replace(make_case("none", recipe=BRIEF), attack=attack)
    again = mount(attack, dataclasses.replace(tools_for(case, 0, context), recompute=True)).value
    assert torch.equal(mounted.training.images(), again.training.images())
    for name, value in mounted.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name


@pytest.mark.parametrize(
    "name", [name for name in NAMES if issubclass(Registry.discover().get(Kind.ATTACK, name), Poisoning)]
)
@given(ratio=st.floats(0.005, 0.5), deploy=st.sampled_from(["replace", "add"]), cap=st.none() | st.integers(1, 50))
@settings(max_examples=15, deadline=None)
def test_any_legal_poison_is_counted_right(
    name: str, ratio: float, deploy: str, cap: int | None, registry: Registry, context: Context, make_case: CaseMaker
) -> None:
    brief = {"iterations": 1} if name == "clean_label" else {}
    settings_ = {"poison_ratio": ratio, "deploy": deploy, "max_poisoned": cap, **brief}
    attack = registry.build(Kind.ATTACK, name, settings_)
    case = dataclasses.replace(make_case("none", recipe=BRIEF), attack=attack)
    data = context.data(case)
    attack.check(data.facts)
    view = attacker_view(tools_for(case, case.seeds[0], context))
    poison = attack.poison(view)
    wanted, available = attack.wanted(torch.tensor(data.facts.train_counts), 10)
    assert int(poison.poisoned.sum()) == wanted <= sum(available)
    assert len(poison.training) == len(data.training) + (wanted if deploy == "add" else 0)
    assert label(attack).startswith(name)
