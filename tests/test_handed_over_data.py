"""What an audit needs of the engine: clean images alone, given triggered images, keys that know files' contents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gauntlet.attack import Backdoor, unchanged
from gauntlet.errors import DataError
from gauntlet.evaluation import REJECTED, Predictions, count_backdoor
from gauntlet.files import content
from gauntlet.images import ImageSet
from gauntlet.labels import AllToOne
from gauntlet.memory import Memory
from gauntlet.pipeline import Context, tools_for
from gauntlet.prepared import prepare_raw
from gauntlet.records import Counts
from gauntlet.settings import paths_in
from gauntlet.splits import halved
from gauntlet.task import RawTask
from gauntlet.testsets import TestSets
from gauntlet.toolbox import describe
from tests.sample_cases import CaseMaker

CPU = torch.device("cpu")


def _raw(labels: list[int], classes: int, own_test: bool = False) -> RawTask:
    images = torch.arange(len(labels) * 12, dtype=torch.uint8).view(len(labels), 3, 2, 2)
    names = tuple(map(str, range(classes)))
    raw = RawTask(images, torch.tensor(labels), names, "by hand", clean_only=True)
    return replace(raw, test_images=images[:1], test_labels=torch.zeros(1, dtype=torch.int64)) if own_test else raw


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.booleans())
def test_halves_are_disjoint_whole_and_stratified(labels: list[int], own_test: bool) -> None:
    rows = halved(torch.tensor(labels), 6, own_test=own_test)

    assert not len(rows.training)
    assert sorted([*rows.reserve.tolist(), *rows.test.tolist()]) == list(range(len(labels)))
    assert len(rows.test) == (0 if own_test else len(labels) // 2)
    for value in range(5):
        members = labels.count(value)
        tested = sum(labels[row] == value for row in rows.test.tolist())
        assert own_test or abs(tested - members * (len(labels) // 2) / len(labels)) < 1


def test_clean_images_alone_need_no_class_and_are_not_normalised() -> None:
    made = prepare_raw(_raw([0, 2, 2, 2], 1283), "audit")

    assert (made.facts.train_size, made.facts.reserve_size, made.facts.test_size) == (0, 2, 2)
    assert (made.mean, made.std) == ((0.0,) * 3, (1.0,) * 3)
    assert made.facts.classes == 1283


def test_an_own_test_set_leaves_all_to_the_defender() -> None:
    facts = prepare_raw(_raw([0, 1, 1], 2, own_test=True), "audit").facts

    assert (facts.train_size, facts.reserve_size, facts.test_size) == (0, 3, 1)


def test_one_image_can_not_be_halved() -> None:
    with pytest.raises(DataError, match="one image; the defender and the evaluator need at least one each"):
        prepare_raw(_raw([0], 2), "audit")


def test_given_images_are_counted_by_hand() -> None:
    """Five given images, of two nobody knows the class, against six clean ones; one input is rejected."""
    backdoor = Backdoor("given", unchanged, AllToOne(2), given=lambda: ImageSet.of(torch.empty(0), torch.empty(0)))
    clean = Predictions(
        "clean", torch.tensor([0, 0, 1, 1, 2, 2]), torch.full((6,), -1), torch.tensor([0, 2, 1, 0, 2, 2])
    )
    labels = torch.tensor([0, 1, -1, -1, 2])
    answers, flagged = torch.tensor([2, 1, 2, 0, 2]), torch.tensor([False, False, False, True, False])
    triggered = Predictions("given", labels, torch.full((5,), 2), answers, flagged.float(), flagged)

    found = count_backdoor(backdoor, clean, triggered, 3)

    assert triggered.answered[3] == REJECTED
    assert found.asr == Counts(hits=2, n=4)
    assert found.asr_inclusive == Counts(hits=3, n=5)
    assert found.untriggered == Counts(hits=1, n=4)
    assert found.robust == Counts(hits=1, n=2)
    assert found.by_class == (Counts(hits=1, n=1), Counts(hits=0, n=1), Counts(hits=0, n=0))


def test_given_images_take_the_place_of_stamped_ones(context: Context, make_case: CaseMaker) -> None:
    tools = tools_for(make_case("none"), 0, context)
    shape = tools.data.facts.shape
    reads = []

    def read() -> ImageSet:
        reads.append(1)
        return ImageSet.of(torch.full((3, *shape), 7, dtype=torch.uint8), torch.tensor([1, -1, 4]))

    sets = TestSets(tools.data, make_case("none").attack, CPU, Memory())
    backdoor = Backdoor("given", unchanged, AllToOne(2), read)

    assert sets.images(backdoor).eq(7).all()
    assert sets.labels(backdoor).tolist() == [1, -1, 4]
    assert sets.labels(None).shape == (tools.data.facts.test_size,)
    assert sets.distances(backdoor) == {}
    assert len(reads) == 1


def test_given_images_of_another_size_are_refused(context: Context, make_case: CaseMaker) -> None:
    tools = tools_for(make_case("none"), 0, context)
    sets = TestSets(tools.data, make_case("none").attack, CPU, Memory())
    images = torch.zeros(2, 1, 5, 5, dtype=torch.uint8)
    wrong = Backdoor("given", unchanged, AllToOne(2), lambda: ImageSet.of(images, torch.zeros(2, dtype=torch.int64)))

    with pytest.raises(DataError, match=r"backdoor given: 2 images of \[1, 5, 5\]; due: at least one of \[1, 28, 28\]"):
        sets.images(wrong)


@dataclass(frozen=True)
class _Inner:
    picture: Path


@dataclass(frozen=True)
class _Filed:
    """Files as settings, by hand."""

    weights: Path | None = None
    inner: tuple[_Inner, ...] = ()
    patch: int = 3


def test_a_changed_file_is_a_changed_key(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    filed = _Filed(one, (_Inner(two),))
    before = describe(filed)
    two.write_bytes(b"22")

    assert paths_in(filed) == [one, two]
    assert describe(filed) != before
    assert "contents" not in describe(_Filed())


def test_a_folder_counts_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_bytes(b"x")
    before = content(tmp_path)
    (tmp_path / "a" / "1").rename(tmp_path / "a" / "2")

    assert content(tmp_path) != before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing can't be read: No such file"):
        content(tmp_path / "nothing")


def test_labels_may_be_unknown_without_counting_for_a_class() -> None:
    unknown: Tensor = torch.full((2,), -1)
    shown = Predictions("given", unknown, torch.tensor([1, 1]), torch.tensor([1, 0]))
    found = count_backdoor(Backdoor("g", unchanged, AllToOne(1)), shown, shown, 2)

    assert found.asr == Counts(hits=1, n=2)
    assert found.robust == Counts(hits=0, n=0)
