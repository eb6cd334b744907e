"""Auxiliary labels: a second label of each image, from the source to the score, and never to the defender."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gauntlet.attack import Backdoor, Family
from gauntlet.case import Case
from gauntlet.dataset import prepare
from gauntlet.defending import defender_view
from gauntlet.errors import DataError, SettingError
from gauntlet.evaluation import Predictions, count_backdoor
from gauntlet.facts import TaskFacts
from gauntlet.images import Images, ImageSet
from gauntlet.labels import AllToAll, AllToOne, FromAuxiliary, LabelMap, SourceToTarget
from gauntlet.mounting import mount
from gauntlet.pipeline import Context, run, tools_for, victim_key
from gauntlet.plugin import Kind, attack
from gauntlet.poisoning import Poisoning
from gauntlet.prepared import prepare_raw
from gauntlet.recipe import Recipe
from gauntlet.records import Counts
from gauntlet.scoring import score
from gauntlet.store import Store
from gauntlet.task import LoadContext, RawTask, TaskSource

NAMES = ("none", "one", "two")


def _images(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def _set(auxiliary: list[int] | None) -> ImageSet:
    return ImageSet.of(
        _images(5), torch.tensor([0, 1, 0, 1, 2]), None if auxiliary is None else torch.tensor(auxiliary)
    )


def _second(images: ImageSet) -> list[int] | None:
    return None if images.auxiliary is None else images.auxiliary.tolist()


def test_image_sets_keep_them() -> None:
    images = _set([0, 1, 2, 1, -1])
    more, labels = _images(2), torch.tensor([2, 2])

    assert _second(images.subset(torch.tensor([4, 2]))) == [-1, 2]
    assert _second(images.subset(images.labels == 1)) == [1, 1]
    assert _second(images.replaced(torch.tensor([0, 4]), more, labels)) == [0, 1, 2, 1, -1]
    assert _second(images.appended(more, labels)) == [0, 1, 2, 1, -1, -1, -1]
    assert _second(images.appended(more, labels, torch.tensor([2, 0]))) == [0, 1, 2, 1, -1, 2, 0]
    assert _second(images.to(torch.device("cpu"))) == [0, 1, 2, 1, -1]
    assert _second(images.materialised()) == [0, 1, 2, 1, -1]
    assert _second(images.without_auxiliary()) is None


def test_sets_without_stay_without() -> None:
    images = _set(None)
    more, labels = _images(2), torch.tensor([2, 2])

    made = (
        images.appended(more, labels),
        images.materialised(),
        images.subset(labels),
        images.replaced(labels, more, labels),
    )
    assert [_second(each) for each in made] == [None] * 4


def test_digests_differ_only_where_there_are_some() -> None:
    plain, first, second = _set(None), _set([0, 1, 2, 1, 0]), _set([0, 1, 2, 1, 1])
    by_hand = hashlib.sha256(repr((5, (1, 2, 2))).encode())
    by_hand.update(plain.labels.numpy().tobytes() + plain.base.numpy().tobytes())

    assert plain.digest() == by_hand.hexdigest() == first.without_auxiliary().digest()
    assert len({plain.digest(), first.digest(), second.digest()}) == 3


def _raw(count: int = 60) -> RawTask:
    labels, auxiliary = torch.arange(count) % 3, torch.arange(count) % 2 + 1
    images = _images(count)
    return RawTask(images, labels, ("a", "b", "c"), "by hand", auxiliary=auxiliary, auxiliary_names=NAMES)


@dataclass(frozen=True)
class _ByHand(TaskSource):
    """Made up for this test."""

    def load(self, context: LoadContext) -> RawTask:
        return _raw()


def test_they_go_through_the_store(tmp_path: Path) -> None:
    store, context = Store(tmp_path, pytest.fail), LoadContext(tmp_path)
    for data in (prepare(_ByHand(), "hand", store, context) for _ in range(2)):
        assert data.facts.auxiliary_names == NAMES
        for part in (data.training, data.reserve_pool, data.test.open()):
            # Image k is k everywhere, and its auxiliary label k % 2 + 1.
            assert _second(part) == (part.images()[:, 0, 0, 0].long() % 2 + 1).tolist()


def test_they_count_in_the_hash_and_change_nothing_where_there_are_none() -> None:
    raw = _raw()
    plain = replace(raw, auxiliary=None, auxiliary_names=())
    other = replace(raw, auxiliary=torch.full_like(raw.labels, 1))
    made = prepare_raw(plain, "hand")
    state = hashlib.sha256(repr((made.facts.classes, 0)).encode())
    for part in (made.training, made.reserve, made.test):
        for tensor in (part.images, part.labels, part.index):
            state.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            state.update(tensor.contiguous().numpy().tobytes())

    assert made.facts.hash == state.hexdigest()
    assert len({prepare_raw(each, "hand").facts.hash for each in (raw, plain, other)}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"auxiliary": torch.zeros(59, dtype=torch.int64)},
            r"must be int64 \[60\], one an image, not torch.int64 \[59\]",
        ),
        ({"auxiliary": torch.zeros(60)}, "not torch.float32"),
        ({"auxiliary": torch.full((60,), 3)}, "auxiliary label 3 of image 0 is out of range; legal: -1 to 2"),
        ({"auxiliary": torch.full((60,), -2)}, "auxiliary label -2 of image 0 is out of range"),
        ({"auxiliary": None}, "auxiliary labels and their names must come together"),
        ({"auxiliary_names": ()}, "auxiliary labels and their names must come together"),
        (
            {"test_images": _images(3), "test_labels": torch.tensor([0, 1, 2])},
            "training and test images must both have auxiliary labels, or neither",
        ),
    ],
)
def test_wrong_ones_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare_raw(replace(_raw(), **changes), "hand")  # type: ignore[arg-type]


def test_the_wanted_label_is_the_auxiliary_one() -> None:
    labels, auxiliary = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 1, -1])

    assert FromAuxiliary().apply(labels, 3, auxiliary).tolist() == [0, 2, 1, -1]
    assert FromAuxiliary().eligible(labels, 3, auxiliary).tolist() == [False, True, True, False]
    with pytest.raises(SettingError, match="no auxiliary labels"):
        FromAuxiliary().apply(labels, 3)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 4)), min_size=1, max_size=20))
def test_other_maps_pass_them_over(pairs: list[tuple[int, int]]) -> None:
    labels, auxiliary = (torch.tensor(column) for column in zip(*pairs, strict=True))
    maps: list[LabelMap] = [AllToOne(3), AllToAll(2), SourceToTarget(1, 4)]
    for each in maps:
        assert torch.equal(each.apply(labels, 5, auxiliary), each.apply(labels, 5))
        assert torch.equal(each.eligible(labels, 5, auxiliary), each.apply(labels, 5) != labels)


def _facts(second: int, classes: int = 3) -> TaskFacts:
    counts = (10,) * classes
    names = tuple(map(str, range(second)))
    return TaskFacts("toy", (1, 2, 2), tuple("abcdefg"[:classes]), counts, counts, counts, "0", "", names)


def test_a_task_must_have_them_and_no_more_than_classes() -> None:
    FromAuxiliary().check(_facts(3))
    AllToOne(0).check(_facts(0))
    with pytest.raises(SettingError, match="toy has no auxiliary labels"):
        FromAuxiliary().check(_facts(0))
    with pytest.raises(SettingError, match="toy has 4 auxiliary labels, but 3 classes to say them with"):
        FromAuxiliary().check(_facts(4))


def test_counts_by_hand() -> None:
    """Six images; the last one's auxiliary label is unknown, the first one's is its label."""
    labels, auxiliary = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 2, 1, -1])
    clean = Predictions("clean", labels, torch.full((6,), -1), torch.tensor([0, 1, 1, 1, 2, 2]), auxiliary=auxiliary)
    answers = torch.tensor([0, 1, 0, 1, 2, 0])
    flagged = torch.tensor([False, False, False, False, False, True])
    shown = Predictions("b", labels, auxiliary, answers, flagged.float(), flagged, auxiliary)

    found = count_backdoor(Backdoor("b", lambda images: images, FromAuxiliary()), clean, shown, 3)

    assert found.asr == Counts(hits=2, n=4)
    assert found.asr_inclusive == Counts(hits=3, n=5)
    assert found.untriggered == Counts(hits=1, n=4)
    assert found.robust == Counts(hits=2, n=4)
    assert found.by_class == (Counts(hits=1, n=1), Counts(hits=1, n=2), Counts(hits=0, n=1))


@attack
@dataclass(frozen=True)
class _Switch(Poisoning):
    """A bright pixel, and the head count becomes the identity."""

    family: ClassVar[Family] = Family.DIRTY_LABEL

    @property
    def label_map(self) -> LabelMap:
        return FromAuxiliary()

    def trigger(self, images: Images) -> Images:
        stamped = images.clone()
        stamped[:, :, :4, :4] = 1
        return stamped


@pytest.fixture(scope="module")
def heads(context: Context) -> Case:
    settings = {"train_size": 600, "test_size": 200, "size": 24}
    return Case(
        suite="tests",
        task_name="head_count[small]",
        task=context.registry.task("head_count", settings),
        architecture=context.registry.build(Kind.MODEL, "simple_cnn", {}),
        attack=_Switch(poison_ratio=0.3),
        defense=context.registry.build(Kind.DEFENSE, "none", {}),
        recipe=Recipe(epochs=2, learning_rate=3e-3, batch_size=64),
        reserve=20,
        seeds=(0,),
    )


@pytest.mark.parametrize("deploy", ["replace", "add"])
def test_a_whole_case(context: Context, heads: Case, deploy: str) -> None:
    case = replace(heads, attack=replace(heads.attack, deploy=deploy))  # type: ignore[call-arg]
    tools = tools_for(case, 0, context)
    case.attack.check(tools.data.facts)
    made = mount(case.attack, tools)
    clean = tools.data.training
    assert clean.auxiliary is not None

    chosen = made.value.poisoned
    sources = made.value.sources[chosen]
    assert int(chosen.sum()) == round(0.3 * len(clean))
    assert torch.equal(made.value.training.labels[chosen], clean.auxiliary[sources])
    assert (clean.auxiliary[sources] != clean.labels[sources]).all()
    assert torch.equal(made.value.training.auxiliary, clean.auxiliary[made.value.sources])  # type: ignore[arg-type]

    view = defender_view(case.defense, case.attack, made.value, made.value.network, 20, tools)
    assert view.reserve.auxiliary is None
    assert view.training.auxiliary is None

    test = tools.data.test.open()
    assert test.auxiliary is not None
    found = score(case.attack, made.value, made.value.network, victim_key(case, 0, context), tools).value
    (counts,) = found.counts.backdoors
    assert counts.asr.n == int(test.auxiliary.ne(test.labels).sum())
    assert torch.equal(found.predictions[1].wanted, test.auxiliary)


@pytest.mark.parametrize("name", ["data_poisoning", "batch_mixing", "weight_injection", "blind"])
def test_every_attack_with_triggers_plants_them(context: Context, heads: Case, name: str) -> None:
    """The trigger `complex` takes the wanted label from the auxiliary one."""
    attack = context.registry.build(Kind.ATTACK, name, {"triggers": "complex"})
    (seed,) = run(replace(heads, attack=attack), context).scores
    test = context.data(heads).test.open()
    assert test.auxiliary is not None
    assert seed.backdoors[0].asr.n == int(test.auxiliary.ne(test.labels).sum())


def test_a_remembered_victim_keeps_them(context: Context, heads: Case) -> None:
    tools = tools_for(heads, 0, context)
    first = mount(heads.attack, tools).value.training
    second = mount(heads.attack, tools_for(heads, 0, replace(context))).value.training
    assert _second(first) == _second(second)
    assert first.digest() == second.digest()


def test_a_task_without_them_is_refused(context: Context) -> None:
    tools_data = prepare(context.registry.task("digits"), "digits", context.store, context.load)
    with pytest.raises(SettingError, match="digits has no auxiliary labels"):
        _Switch().check(tools_data.facts)


def test_more_poison_than_there_are_other_labels_is_refused(context: Context, heads: Case) -> None:
    tools = tools_for(heads, 0, context)
    with pytest.raises(SettingError, match=r"asks for \d+ images, but head_count\[small\] has only \d+ whose"):
        mount(replace(heads.attack, poison_ratio=1.0), tools)  # type: ignore[call-arg]
