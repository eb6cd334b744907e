from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gauntlet.dataset import TaskData, facts, prepare
from gauntlet.errors import DataError, LeakError, SettingError
from gauntlet.guard import Role, acting_as
from gauntlet.prepared import prepare_raw
from gauntlet.splits import quota_order, split
from gauntlet.store import Store
from gauntlet.task import LoadContext, RawTask, TaskSource

CONTEXT = LoadContext(Path("nowhere"), offline=True)


def raw(counts: tuple[int, ...] = (40, 30, 30), test: int = 0, shape: tuple[int, int, int] = (1, 4, 4)) -> RawTask:
    draw = torch.Generator().manual_seed(1)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=draw)]

    def images(size: int) -> Tensor:
        return torch.randint(0, 256, (size, *shape), generator=draw, dtype=torch.uint8)

    own = (images(test), torch.arange(test) % len(counts)) if test else (None, None)
    names = tuple(f"class {label}" for label in range(len(counts)))
    return RawTask(images(len(labels)), labels, names, "invented", *own)


class Invented(TaskSource):
    """A source without settings that counts how often it is loaded."""

    def __init__(self, data: RawTask | None = None, paths: tuple[Path, ...] = ()) -> None:
        self.data = data or raw()
        self.paths = paths
        self.loads: list[LoadContext] = []

    def files(self) -> tuple[Path, ...]:
        return self.paths

    def load(self, context: LoadContext) -> RawTask:
        self.loads.append(context)
        return self.data


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", pytest.fail)


class TestQuotaOrder:
    @given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.data())
    @settings(max_examples=60, deadline=None)
    def test_every_prefix_is_within_one_of_the_exact_share(self, counts: list[int], data: st.DataObject) -> None:
        total = sum(counts)
        order = quota_order(torch.tensor(counts), data.draw(st.integers(0, total)))
        for length in range(len(order) + 1):
            exact = np.array(counts) * length / total
            got = np.bincount(order[:length].numpy(), minlength=len(counts))
            assert got.sum() == length
            assert (np.abs(got - exact) < 1).all()
            assert (got <= counts).all()

    def test_known_order(self) -> None:
        assert quota_order(torch.tensor([4, 2, 2]), 8).tolist() == [0, 1, 0, 2, 0, 1, 0, 2]


class TestSplit:
    @given(st.lists(st.integers(3, 200), min_size=2, max_size=8), st.booleans(), st.randoms())
    @settings(max_examples=60, deadline=None)
    def test_disjoint_complete_and_stratified(self, counts: list[int], own_test: bool, random: Any) -> None:
        labels_ = [label for label, count in enumerate(counts) for _ in range(count)]
        random.shuffle(labels_)
        labels = torch.tensor(labels_)
        rows = split(labels, len(counts), own_test=own_test)
        together = torch.cat([rows.training, rows.reserve, rows.test])
        assert together.sort().values.tolist() == list(range(len(labels)))

        test = torch.bincount(labels[rows.test], minlength=len(counts))
        size = 0 if own_test else len(labels) // 4
        assert len(rows.test) == size
        assert ((test - torch.tensor(counts) * size / len(labels)).abs() < 1).all()

        left = torch.tensor(counts) - test
        assert len(rows.reserve) == int(left.sum()) * 15 // 100
        reserve = torch.bincount(labels[rows.reserve], minlength=len(counts))
        assert ((reserve - left * len(rows.reserve) / left.sum()).abs() < 1).all()
        assert (torch.bincount(labels[rows.training], minlength=len(counts)) >= 1).all()

    def test_does_not_depend_on_the_global_generator(self) -> None:
        labels = torch.arange(100) % 4
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            first = split(labels, 4, own_test=False)
            torch.manual_seed(2)
            second = split(labels, 4, own_test=False)
        assert torch.equal(first.test, second.test)
        assert torch.equal(first.reserve, second.reserve)

    def test_the_draw_is_not_by_position(self) -> None:
        rows = split(torch.arange(1000) % 2, 2, own_test=False).test
        assert 400 < rows.double().mean() < 600
        assert rows.max() > 900


class TestPreparing:
    def test_splits_are_disjoint_by_source_row(self) -> None:
        made = prepare_raw(raw(test=12), "x")
        parts = [set(part.index.tolist()) for part in (made.training, made.reserve, made.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 112
        assert parts[2] == set(range(100, 112))

    def test_rows_carry_their_own_image_and_label(self) -> None:
        source = raw()
        made = prepare_raw(source, "x")
        for part in (made.training, made.reserve, made.test):
            assert torch.equal(part.images, source.images[part.index])
            assert torch.equal(part.labels, source.labels[part.index])

    def test_facts(self) -> None:
        known = prepare_raw(raw(test=12), "x").facts
        assert (known.shape, known.classes, known.test_counts) == ((1, 4, 4), 3, (4, 4, 4))
        assert (known.train_size, known.reserve_size) == (85, 15)
        assert sum(known.train_counts) + sum(known.reserve_counts) == 100
        assert known.provenance == "invented; test set: the source's own"

    def test_hash_is_of_content(self) -> None:
        source = raw()
        same = replace(source, images=source.images.clone(), provenance="elsewhere")
        pixel = replace(source, images=source.images.clone())
        pixel.images[17, 0, 2, 2] ^= 1
        label = replace(source, labels=source.labels.clone())
        label.labels[17] = (label.labels[17] + 1) % 3
        hashes = [prepare_raw(task, name).facts.hash for task, name in ((source, "x"), (same, "y"))]
        assert hashes[0] == hashes[1]
        assert len({hashes[0], prepare_raw(pixel, "x").facts.hash, prepare_raw(label, "x").facts.hash}) == 3

    def test_hash_is_of_the_classes_that_no_image_has(self) -> None:
        source = replace(raw(), clean_only=True)
        more = replace(source, class_names=("a", "b", "c", "d"))
        second = torch.zeros_like(source.labels)
        few, many = (replace(source, auxiliary=second, auxiliary_names=names) for names in (("x",), ("x", "y")))
        assert len({prepare_raw(task, "x").facts.hash for task in (source, more, few, many)}) == 4

    def test_moments_are_of_the_training_split(self) -> None:
        made = prepare_raw(raw((300, 300), shape=(3, 2, 2)), "x")
        pixels = made.training.images.numpy() / 255
        np.testing.assert_allclose(made.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(made.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)

    def test_a_constant_channel_has_std_one(self) -> None:
        source = raw(shape=(2, 2, 2))
        source.images[:, 1] = 51
        made = prepare_raw(source, "x")
        assert made.mean[1] == pytest.approx(0.2)
        assert made.std[1] == 1.0
        assert made.std[0] != 1.0

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda r: replace(r, class_names=("one",)), r"1 class\(es\); .* at least 2"),
            (lambda r: replace(r, images=r.images.float()), "must be uint8"),
            (lambda r: replace(r, images=r.images[:, 0]), r"must be uint8 \[N, C, H, W\]"),
            (lambda r: replace(r, images=r.images[:0], labels=r.labels[:0]), "no images"),
            (lambda r: replace(r, labels=r.labels[:-1]), r"labels must be int64 \[100\]"),
            (lambda r: replace(r, labels=r.labels.int()), "labels must be int64"),
            (lambda r: replace(r, labels=r.labels - 1), r"label -1 of image \d+ is out of range; legal: 0 to 2"),
            (lambda r: replace(r, labels=r.labels + 1), r"label 3 of image \d+ is out of range"),
            (lambda r: replace(r, test_labels=None), "must come together"),
            (lambda r: replace(r, test_images=r.test_images[:, :, 1:]), r"differ in \[C, H, W\]"),
            (lambda r: replace(r, test_labels=r.test_labels + 9), "test part: label 9 of image 0"),
            (lambda r: replace(r, class_names=(*r.class_names, "ghost")), r"class 'ghost' has 0 training image\(s\)"),
            (
                lambda r: replace(r, class_names=("a", "b", "c\udcff")),
                r"the name c\\udcff is no UTF-8; rename the file",
            ),
        ],
    )
    def test_bad_sources(self, spoil: Callable[[RawTask], RawTask], message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            prepare_raw(spoil(raw(test=12)), "x")
        assert str(caught.value).startswith("task x")
        assert "\n" not in str(caught.value)

    def test_smallest_classes(self) -> None:
        assert min(prepare_raw(raw((3, 50, 50)), "x").facts.train_counts) >= 1
        assert min(prepare_raw(raw((2, 50, 50), test=3), "x").facts.train_counts) >= 1
        with pytest.raises(DataError, match="need at least 3 of each class"):
            prepare_raw(raw((2, 50, 50)), "x")


class TestStored:
    def test_second_time_is_mapped_and_equal(self, store: Store) -> None:
        source, lines = Invented(raw(test=12)), list[str]()
        first = prepare(source, "x", store, CONTEXT, lines.append)
        second = prepare(source, "x", store, CONTEXT, lines.append)
        assert len(source.loads) == 1
        assert len(lines) == 2
        assert "112 images" in lines[1]
        assert first.facts == second.facts
        assert (first.mean, first.std) == (second.mean, second.std)
        for one, two in zip(sets(first), sets(second), strict=True):
            assert torch.equal(one.images(), two.images())
            assert torch.equal(one.labels, two.labels)

    def test_same_hash_in_another_store(self, store: Store, tmp_path: Path) -> None:
        other = Store(tmp_path / "other", pytest.fail)
        assert prepare(Invented(), "x", store, CONTEXT).facts == prepare(Invented(), "x", other, CONTEXT).facts

    def test_facts_prepare_once(self, store: Store) -> None:
        source = Invented()
        known = facts(source, "x", store, CONTEXT)
        assert facts(source, "x", store, CONTEXT) == known == prepare(source, "x", store, CONTEXT).facts
        assert len(source.loads) == 1

    def test_facts_after_prepare_need_no_tensors(self, store: Store) -> None:
        source = Invented()
        known = prepare(source, "x", store, CONTEXT).facts
        for file in store.root.glob("tasks/*/*/*.safetensors"):
            file.unlink()
        assert facts(source, "x", store, CONTEXT) == known
        assert len(source.loads) == 1

    def test_a_changed_file_is_noticed(self, store: Store, tmp_path: Path) -> None:
        file = tmp_path / "data"
        file.write_text("1")
        source = Invented(paths=(file,))
        prepare(source, "x", store, CONTEXT)
        file.write_text("12")
        prepare(source, "x", store, CONTEXT)
        facts(source, "x", store, CONTEXT)
        assert len(source.loads) == 2

    def test_a_vanished_file_is_a_sentence(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="gone can't be read: No such file"):
            prepare(Invented(paths=(tmp_path / "gone",)), "x", store, CONTEXT)

    def test_damage_is_repaired(self, tmp_path: Path) -> None:
        warnings: list[str] = []
        store, source = Store(tmp_path, warnings.append), Invented()
        first = prepare(source, "x", store, CONTEXT)
        (file,) = tmp_path.glob("tasks/*/*/tensors.safetensors")
        content = bytearray(file.read_bytes())
        content[-1] ^= 255
        file.unlink()
        file.write_bytes(content)
        assert prepare(source, "x", store, CONTEXT).facts == first.facts
        assert len(source.loads) == 2
        assert len(warnings) == 1

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_images_are_mapped_from_the_store(self, store: Store) -> None:
        prepare(Invented(), "x", store, CONTEXT)
        data = prepare(Invented(), "x", store, CONTEXT)
        address = data.training.base.data_ptr()
        lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if "tensors.safetensors" in line]
        spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
        assert any(start <= address < end for start, end in spans)

    def test_a_tiny_task_without_reserve(self, store: Store) -> None:
        for _ in range(2):
            data = prepare(Invented(raw((3, 3))), "x", store, CONTEXT)
            assert [len(part) for part in sets(data)] == [5, 0, 1]
            assert len(data.reserve(0).images()) == 0

    def test_writing_into_a_mapped_image_leaves_the_store_alone(self, store: Store) -> None:
        prepare(Invented(), "x", store, CONTEXT)
        before = prepare(Invented(), "x", store, CONTEXT).training.images()
        prepare(Invented(), "x", store, CONTEXT).training.base.zero_()
        assert torch.equal(prepare(Invented(), "x", store, CONTEXT).training.images(), before)


class TestWall:
    @pytest.mark.parametrize("role", [Role.ATTACKER, Role.DEFENDER])
    def test_players_get_nothing(self, store: Store, role: Role) -> None:
        data = prepare(Invented(), "x", store, CONTEXT)
        with acting_as(role):
            with pytest.raises(LeakError, match=f"the {role} reached for the test images of task x"):
                data.test.open()
            with pytest.raises(LeakError, match="the data of task x"):
                prepare(Invented(), "x", store, CONTEXT)
            with pytest.raises(LeakError, match="the data of task x"):
                facts(Invented(), "x", store, CONTEXT)
        assert len(data.test.open()) == 25

    def test_no_base_holds_another_sets_images(self, store: Store) -> None:
        data = prepare(Invented(), "x", store, CONTEXT)
        data = prepare(Invented(), "x", store, CONTEXT)
        spans = sorted((part.base.data_ptr(), part.base.data_ptr() + part.base.nbytes) for part in sets(data))
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert [len(part.base) for part in sets(data)] == [64, 11, 25]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    source = Invented(raw((5000, 4000, 8001, 3000), test=8, shape=(1, 1, 1)))
    return prepare(source, "x", Store(tmp_path_factory.mktemp("store"), pytest.fail), CONTEXT)


class TestReserve:
    def test_pool_is_at_most_2500(self, data: TaskData) -> None:
        assert len(data.reserve_pool) == data.facts.reserve_size == 2500

    @pytest.mark.parametrize("budget", [0, 1, 100, 500, 2500])
    def test_stratified(self, data: TaskData, budget: int) -> None:
        reserve = data.reserve(budget)
        assert len(reserve) == budget
        assert reserve.images().shape == (budget, 1, 1, 1)
        exact = torch.tensor([5000, 4000, 8001, 3000]) * budget / 20001
        assert ((torch.bincount(reserve.labels, minlength=4) - exact).abs() < 1).all()

    def test_nested_and_shared(self, data: TaskData) -> None:
        rows = [set(data.reserve(budget).rows.tolist()) for budget in (0, 100, 500, 2500)]
        assert rows[0] < rows[1] < rows[2] < rows[3]
        assert data.reserve(100).base is data.reserve_pool.base

    @pytest.mark.parametrize("budget", [-1, 2501])
    def test_out_of_range(self, data: TaskData, budget: int) -> None:
        with pytest.raises(SettingError, match=rf"task x: reserve = {budget} is out of range; legal: 0 to 2500"):
            data.reserve(budget)


def sets(data: TaskData) -> list[Any]:
    return [data.training, data.reserve_pool, data.test.open()]
