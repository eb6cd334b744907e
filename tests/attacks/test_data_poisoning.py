from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from attacks.batch_mixing import BatchMixing
from attacks.data_poisoning import DataPoisoning
from attacks.weight_injection import WeightInjection
from gauntlet.attack import Attack
from gauntlet.case import label
from gauntlet.errors import SettingError
from gauntlet.evaluation import Predictions, count_backdoor
from gauntlet.images import to_float, to_uint8
from gauntlet.mixing import clean_training, mixed
from gauntlet.mounting import attacker_view, mount
from gauntlet.objective import Batch
from gauntlet.pipeline import Context, run, tools_for
from gauntlet.plugin import Kind
from gauntlet.poisoning import Poison
from gauntlet.recipe import Recipe
from gauntlet.records import Counts
from gauntlet.synthesizers import Dynamic, Pattern, Physical, Pixel, Semantic, Trigger
from gauntlet.testsets import TestSets
from gauntlet.views import AttackerView
from tests.sample_cases import CaseMaker

STICKER = Physical(target=8, picture="sticker", width=0.4, row=0.75, column=0.25)
THREE = (Pattern(target=1), Dynamic(target=2), STICKER)


@pytest.fixture
def view(context: Context, make_case: CaseMaker) -> AttackerView:
    return attacker_view(tools_for(make_case("none"), 0, context))


def check_poison(poison: Poison, view: AttackerView) -> None:
    """What is not poisoned is as it was."""
    kept = (~poison.poisoned).nonzero().flatten()
    sources = poison.sources[kept]
    assert torch.equal(poison.training.images(kept), view.training.images(sources))
    assert torch.equal(poison.training.labels[kept], view.training.labels[sources])


@pytest.mark.parametrize("deploy", ["replace", "add"])
@given(ratio=st.floats(0.002, 0.25), include=st.booleans())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_backdoor_has_samples_of_its_own(deploy: Any, ratio: float, include: bool, view: AttackerView) -> None:
    attack = DataPoisoning(triggers=THREE, poison_ratio=ratio, deploy=deploy, include_target=include)
    attack.check(view.facts)
    poison = attack.poison(view)
    size = round(ratio * len(view.training))
    assert int(poison.poisoned.sum()) == 3 * size
    assert len(poison.training) == len(view.training) + (3 * size if deploy == "add" else 0)
    assert len(set(poison.sources[poison.poisoned].tolist())) == 3 * size
    before = view.training.labels[poison.sources[poison.poisoned]]
    after = poison.training.labels[poison.poisoned]
    assert after.bincount(minlength=10).tolist() == [0, size, size, 0, 0, 0, 0, 0, size, 0]
    assert include or not (before == after).any()
    check_poison(poison, view)


def test_the_poisoned_images_carry_their_trigger(view: AttackerView) -> None:
    poison = DataPoisoning(triggers=(Pattern(target=1), Pixel(row=0, column=0, target=2))).poison(view)
    for target, trigger in ((1, Pattern()), (2, Pixel(row=0, column=0))):
        rows = (poison.poisoned & (poison.training.labels == target)).nonzero().flatten()
        clean = to_float(view.training.images(poison.sources[rows]))
        painted = trigger.apply(clean, torch.Generator())
        assert torch.equal(poison.training.images(rows), to_uint8(painted))


def test_semantic_rows_are_relabelled_in_their_places(view: AttackerView) -> None:
    rows = tuple((view.training.labels == 3).nonzero().flatten()[:5].tolist())
    feature = Semantic(target=0, rows=rows, test_rows=(1, 2))
    poison = DataPoisoning(triggers=(feature, Pattern(target=4)), poison_ratio=0.1, deploy="add").poison(view)
    carried = torch.isin(poison.sources, torch.tensor(rows))
    assert int(carried.sum()) == 5
    assert poison.training.labels[carried].tolist() == [0] * 5
    assert bool(poison.poisoned[carried].all())
    assert torch.equal(
        poison.training.images(carried.nonzero().flatten()), view.training.images(poison.sources[carried])
    )
    assert int(poison.poisoned.sum()) == 5 + round(0.1 * len(view.training))
    check_poison(poison, view)


def test_semantic_rows_are_scored_as_they_are(context: Context, make_case: CaseMaker) -> None:
    case = make_case("none")
    data = context.data(case)
    attack = DataPoisoning(triggers=(Semantic(target=0, rows=(3,), test_rows=(7, 5)),))
    sets = TestSets(data, attack, context.device, tools_for(case, 0, context).memory)
    backdoor = attack.backdoors[0]
    test = data.test.open()
    assert torch.equal(sets.images(backdoor), test.images(torch.tensor([7, 5])))
    assert torch.equal(sets.labels(backdoor), test.labels[torch.tensor([7, 5])])
    assert sets.distances(backdoor) == {}


@pytest.mark.parametrize(
    ("feature", "carried"),
    [
        (Semantic(target=0, label=7), [0, 0, 0, 1, 1]),
        (Semantic(target=0, rows=(3,), test_rows=(1, 4)), [0, 1, 0, 0, 1]),
        (Pixel(row=0, column=0, target=0), [0] * 5),
    ],
    ids=["label", "rows", "stamped"],
)
def test_images_that_carry_the_feature_are_no_clean_ones(feature: Trigger, carried: list[int]) -> None:
    """A detector that finds all of them, and nothing else, is perfect; they have nothing to say without the feature."""
    backdoor = DataPoisoning(triggers=(feature,)).backdoors[0]
    labels, carries = torch.tensor([0, 1, 2, 7, 7]), torch.tensor(carried).bool()
    assert torch.equal(backdoor.carriers(labels, 10), carries)

    shown = list(backdoor.rows) or list(range(5))
    clean = Predictions("clean", labels, torch.full((5,), -1), labels.masked_fill(carries, 0), carries.float())
    triggered = Predictions("b", labels[shown], torch.zeros(5)[shown].long(), torch.zeros(5)[shown].long())
    found = count_backdoor(backdoor, clean, triggered, 10)
    eligible = backdoor.labels.eligible(labels[shown], 10)
    assert found.asr == Counts(hits=int(eligible.sum()), n=int(eligible.sum()))
    assert found.untriggered == Counts(hits=0, n=int((backdoor.labels.eligible(labels, 10) & ~carries).sum()))


def test_a_semantic_backdoor_leaves_clean_accuracy_to_the_other_images(context: Context, make_case: CaseMaker) -> None:
    case = make_case("data_poisoning", "strip", model="shallow_net", recipe=Recipe(epochs=1))
    feature = Semantic(target=0, label=7)
    case = dataclasses.replace(case, attack=DataPoisoning(triggers=(feature,)))
    (score,) = run(case, context).scores
    sevens = int((context.data(case).test.open().labels == 7).sum())
    rest = context.data(case).facts.test_size - sevens
    assert score.detector is not None
    assert (score.clean.n, score.detector.clean.n, score.undefended_clean.n) == (rest, rest, rest)
    assert score.clean_by_class[7].n == 0
    assert (score.backdoors[0].asr.n, score.backdoors[0].untriggered.n) == (sevens, 0)


def test_semantic_files_take_the_places_of_others(view: AttackerView, tmp_path: Path) -> None:
    for folder in ("own", "test"):
        (tmp_path / folder).mkdir()
        for level in (10, 20):
            Image.new("L", (28, 28), level).save(tmp_path / folder / f"{level}.png")
    feature = Semantic(target=6, folder=tmp_path / "own", test_folder=tmp_path / "test")
    attack = DataPoisoning(triggers=(feature,), poison_ratio=0.05)
    attack.check(view.facts)
    poison = attack.poison(view)
    shown = poison.training.images(poison.poisoned.nonzero().flatten())
    assert set(shown.flatten().tolist()) == {10, 20}
    assert set(poison.training.labels[poison.poisoned].tolist()) == {6}
    check_poison(poison, view)


@pytest.mark.parametrize(
    ("attack", "problem"),
    [
        (DataPoisoning(triggers=THREE, poison_ratio=0.4), "are left; legal: less"),
        (DataPoisoning(poison_ratio=1e-5), "poisons none; legal: 0, or from 1/1146"),
        (DataPoisoning(triggers=(Pattern(column=26),)), "outside digits's 28x28"),
        (DataPoisoning(triggers=(Pattern(target=10),)), "target = 10"),
        (BatchMixing(triggers=THREE, share=0.5), "share = 0.5 of every batch for each of 3 triggers; legal: at most"),
        (BatchMixing(triggers=(Pixel(), Pixel(target=1))), "2 backdoors are called pixel"),
        (WeightInjection(triggers=(Dynamic(largest=20),)), "more than digits's"),
    ],
    ids=lambda each: each if isinstance(each, str) else label(each),
)
def test_bad_settings_are_refused_before_training(attack: Attack, problem: str, view: AttackerView) -> None:
    with pytest.raises(SettingError) as error:
        attack.check(view.facts)
    assert problem in str(error.value)


def test_a_mixed_batch(view: AttackerView) -> None:
    training, rows = clean_training(THREE, view)
    assert training is view.training
    assert torch.equal(rows, torch.arange(len(training)))
    objective = mixed(THREE, view, training, 0.1)
    index = torch.arange(100)
    images, labels = to_float(training.images(index)), training.labels[index]
    batch = Batch(images.clone(), labels.clone(), index, torch.Generator().manual_seed(0))
    shown, wanted = objective.mixed(batch)
    assert torch.equal(batch.images, images)
    assert torch.equal(batch.labels, labels)
    moved = (shown != images).flatten(1).any(1)
    assert int(moved.sum()) == 30
    assert torch.equal(wanted[~moved], labels[~moved])
    assert wanted[moved].bincount(minlength=10).tolist() == [0, 10, 10, 0, 0, 0, 0, 0, 10, 0]
    again, _ = objective.mixed(batch)
    assert not torch.equal(again, shown)


def test_semantic_images_are_mixed_in_and_trained_on_no_more(view: AttackerView) -> None:
    feature = Semantic(target=0, label=7)
    training, rows = clean_training((feature,), view)
    assert not (training.labels == 7).any()
    assert torch.equal(training.labels, view.training.labels[rows])
    objective = mixed((feature,), view, training, 0.2)
    index = torch.arange(50)
    batch = Batch(to_float(training.images(index)), training.labels[index], index, torch.Generator().manual_seed(0))
    shown, wanted = objective.mixed(batch)
    moved = (shown != batch.images).flatten(1).any(1)
    assert int(moved.sum()) == 10
    assert wanted[moved].tolist() == [0] * 10
    sevens = {image.numpy().tobytes() for image in view.training.images(view.training.labels == 7)}
    assert {image.numpy().tobytes() for image in to_uint8(shown[moved])} <= sevens


@pytest.mark.parametrize("name", ["data_poisoning", "batch_mixing", "weight_injection"])
def test_three_backdoors_in_one_model_work(name: str, context: Context, make_case: CaseMaker) -> None:
    written = [{"kind": "pattern", "target": 1}, {"kind": "pixel", "target": 2, "row": 26, "column": 1}]
    brief = {"epochs": 6, "learning_rate": 3e-3} if name == "weight_injection" else {}
    case = make_case(name, attack_settings={"triggers": [*written, {"kind": "dynamic", "target": 8}], **brief})
    outcome = run(case, context)
    assert [one.name for one in outcome.scores[0].backdoors] == ["pattern", "pixel", "dynamic"]
    assert all(one.asr.hits > 0.7 * one.asr.n for one in outcome.scores[0].backdoors)
    assert outcome.scores[0].clean.hits > 0.9 * outcome.scores[0].clean.n


def test_the_injection_leaves_the_shared_clean_network_alone(context: Context, make_case: CaseMaker) -> None:
    clean = mount(context.registry.build(Kind.ATTACK, "none", {}), tools_for(make_case("none"), 0, context)).value
    before = {name: value.clone() for name, value in clean.network.state_dict().items()}
    tools = dataclasses.replace(tools_for(make_case("none"), 0, context), recompute=False)
    injected = mount(WeightInjection(), tools).value
    for name, value in clean.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert any(not torch.equal(value, before[name]) for name, value in injected.network.state_dict().items())
