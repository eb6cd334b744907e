from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from gauntlet.dataset import prepare
from gauntlet.errors import DataError, SettingError
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.store import Store
from gauntlet.task import LoadContext, TaskSource

OFFLINE = LoadContext(Path("nowhere"), offline=True)
REGISTRY = Registry.discover()


def source(kind: str, **settings: object) -> TaskSource:
    built: TaskSource = REGISTRY.build(Kind.TASK, kind, settings)
    return built


def refused(task: TaskSource) -> str:
    with pytest.raises(DataError) as caught:
        task.load(OFFLINE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbered(count: int, shape: tuple[int, ...] = (3, 5, 4)) -> npt.NDArray[np.float32]:
    """Image k is k everywhere."""
    return np.broadcast_to(np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1), (count, *shape))


def write(path: Path, images: npt.NDArray[Any], labels: list[int], **keys: str) -> Path:
    with h5py.File(path, "w") as file:
        file[keys.get("image", "data")] = images
        file[keys.get("label", "label")] = np.array(labels)
    return path


class TestH5:
    def test_the_form_of_the_contest(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.h5", numbered(12), [0, 1, 2] * 4)
        task = REGISTRY.task(f"h5:{path}")
        raw = task.load(OFFLINE)
        assert raw.images.shape == (12, 3, 5, 4)
        assert raw.images.dtype == torch.uint8
        assert set(raw.images[7].flatten().tolist()) == {7}
        assert raw.labels.tolist() == [0, 1, 2] * 4
        assert raw.class_names == ("0", "1", "2")
        assert (raw.test_images, raw.clean_only) == (None, False)
        assert task.files() == (path,)

    def test_other_keys_and_layouts(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).random((8, 5, 4, 1), dtype=np.float32)
        path = write(tmp_path / "a.hdf5", images, [0, 1] * 4, image="x", label="y")
        settings = {"image_key": "x", "label_key": "y", "layout": "nhwc", "value_range": "0..1"}
        raw = source("h5", path=path, **settings).load(OFFLINE)
        assert np.array_equal(raw.images[:, 0].numpy(), np.rint(images[..., 0] * 255).astype(np.uint8))

    def test_a_second_file_is_the_test_set(self, tmp_path: Path) -> None:
        first = write(tmp_path / "a.h5", numbered(10), [0, 1] * 5)
        second = write(tmp_path / "b.h5", numbered(3), [1, 2, 1])
        task = source("h5", path=first, test=second)
        raw = task.load(OFFLINE)
        assert task.files() == (first, second)
        assert raw.test_labels is not None
        assert (raw.labels.tolist(), raw.test_labels.tolist()) == ([0, 1] * 5, [1, 2, 1])
        assert len(raw.class_names) == 3
        assert raw.provenance == "HDF5 a.h5 ([N, C, H, W], values 0..255) and b.h5 ([N, C, H, W], values 0..255)"

    def test_clean_images_alone_are_halved(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.h5", numbered(21), [0, 1, 1282] * 7)
        task = source("h5", path=path, clean_only=True, classes=1283)
        data = prepare(task, "clean", Store(tmp_path / "store", pytest.fail), OFFLINE)
        assert (data.facts.train_size, data.facts.reserve_size, data.facts.test_size) == (0, 11, 10)
        assert data.facts.classes == 1283
        assert (data.mean, data.std) == ((0.0,) * 3, (1.0,) * 3)
        seen = {int(image.flatten()[0]) for image in data.reserve_pool.images()}
        hidden = {int(image.flatten()[0]) for image in data.test.open().images()}
        assert seen | hidden == set(range(21))
        assert not seen & hidden

    def test_all_clean_images_are_the_defenders_beside_a_test_file(self, tmp_path: Path) -> None:
        first, second = (write(tmp_path / name, numbered(6), [0, 1] * 3) for name in ("a.h5", "b.h5"))
        task = source("h5", path=first, test=second, clean_only=True)
        data = prepare(task, "clean", Store(tmp_path / "store", pytest.fail), OFFLINE)
        assert (data.facts.reserve_size, data.facts.test_size) == (6, 6)

    def test_a_changed_file_is_read_anew(self, tmp_path: Path) -> None:
        path, store = tmp_path / "a.h5", Store(tmp_path / "store", pytest.fail)
        facts = []
        for shift in (0, 1):
            write(path, numbered(12) + shift, [0, 1] * 6)
            os.utime(path, ns=(shift, shift))
            facts.append(prepare(source("h5", path=path), "x", store, OFFLINE).facts)
        assert facts[0].hash != facts[1].hash

    @pytest.mark.parametrize(
        ("labels", "classes", "message"),
        [
            ([0, 1, 5, 0], 5, "label 5 of image 2 is out of range; legal: 0 to 4"),
            ([0, 1, 4, 0], None, "label 4 of image 2 is out of range; legal: 0 to 3, or give the number of `classes`"),
            ([0, 2**31 - 1, 0, 1], None, "label 2147483647 of image 1 is out of range"),
        ],
    )
    def test_labels_out_of_range(self, tmp_path: Path, labels: list[int], classes: int | None, message: str) -> None:
        path = write(tmp_path / "a.h5", numbered(4), labels)
        assert f"{path}: {message}" in refused(source("h5", path=path, classes=classes))

    def test_labels_of_the_test_file_count_too(self, tmp_path: Path) -> None:
        first = write(tmp_path / "a.h5", numbered(4), [0, 1, 0, 1])
        second = write(tmp_path / "b.h5", numbered(2), [0, 3])
        text = refused(source("h5", path=first, test=second, classes=3))
        assert text == f"{second}: label 3 of image 1 is out of range; legal: 0 to 2"

    def test_one_class_is_told_how_to_say_that_there_are_more(self, tmp_path: Path) -> None:
        path, store = write(tmp_path / "a.h5", numbered(6), [0] * 6), Store(tmp_path / "store", pytest.fail)
        with pytest.raises(
            DataError, match=r"1 class\(es\).*`classes`, if it has one, or `--classes` to gauntlet audit"
        ):
            prepare(source("h5", path=path, clean_only=True), "clean", store, OFFLINE)
        data = prepare(source("h5", path=path, clean_only=True, classes=3), "clean", store, OFFLINE)
        assert data.facts.classes == 3

    @pytest.mark.parametrize(
        ("shape", "hint"),
        [((3, 6, 4), ", or the `size`, or `--resize` to gauntlet audit, to resize them"), ((1, 5, 4), "")],
    )
    def test_shapes_must_agree(self, tmp_path: Path, shape: tuple[int, int, int], hint: str) -> None:
        first = write(tmp_path / "a.h5", numbered(4), [0, 1, 0, 1])
        second = write(tmp_path / "b.h5", numbered(4, shape), [0, 1, 0, 1])
        text = refused(source("h5", path=first, test=second))
        assert text == f"{second} holds images {list(shape)} in [C, H, W], {first} [3, 5, 4]; due: one shape{hint}"

    def test_no_images(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.h5", numbered(0), [])
        assert str(path) in refused(source("h5", path=path))

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        gone = tmp_path / "gone.h5"
        assert str(gone) in refused(source("h5", path=gone))
        with pytest.raises(DataError, match=r"gone\.h5"):
            prepare(source("h5", path=gone), "x", Store(tmp_path / "store", pytest.fail), OFFLINE)

    @pytest.mark.parametrize("setting", [{"classes": 1}, {"classes": 10**7}, {"layout": "hwc"}, {"value_range": "0"}])
    def test_settings_out_of_range(self, tmp_path: Path, setting: dict[str, Any]) -> None:
        with pytest.raises(SettingError, match=next(iter(setting))):
            source("h5", path=tmp_path, **setting)


class TestCleanFolder:
    def fill(self, root: Path, classes: tuple[str, ...], count: int = 4) -> Path:
        for label, name in enumerate(classes):
            (root / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (4, 5), (10 * label + number,) * 3).save(root / name / f"{number}.png")
        return root

    def test_halves(self, tmp_path: Path) -> None:
        root = self.fill(tmp_path / "data", ("cat", "dog"))
        task = source("folder", path=root, clean_only=True)
        data = prepare(task, "x", Store(tmp_path / "store", pytest.fail), OFFLINE)
        assert (data.facts.train_size, data.facts.reserve_counts, data.facts.test_counts) == (0, (2, 2), (2, 2))

    def test_numbers_are_labels_where_classes_lack(self, tmp_path: Path) -> None:
        root = self.fill(tmp_path / "data", ("007", "2", "10"))
        raw = source("folder", path=root, clean_only=True, classes=11).load(OFFLINE)
        # 007, 10, 2 in alphabetical order.
        assert raw.labels.tolist() == [7] * 4 + [10] * 4 + [2] * 4
        assert len(raw.class_names) == 11
        assert raw.images[4, 0, 0, 0] == 20

    def test_numbers_are_labels_of_a_models_clean_images(self, tmp_path: Path) -> None:
        """A training task keeps ImageFolder's order, in which 10 comes before 2."""
        root = self.fill(tmp_path / "data", tuple(map(str, range(12))), count=1)
        raw = source("folder", path=root, clean_only=True).load(OFFLINE)
        assert raw.labels.tolist() == [0, 1, 10, 11, *range(2, 10)]
        assert raw.class_names == tuple(map(str, range(12)))
        assert source("folder", path=root).load(OFFLINE).labels.tolist() == list(range(12))

    @pytest.mark.parametrize(("names", "lacks"), [(("0", "1", "3"), 2), (("1", "2"), 0)])
    def test_a_gap_in_the_numbers(self, tmp_path: Path, names: tuple[str, ...], lacks: int) -> None:
        root = self.fill(tmp_path / "data", names)
        text = refused(source("folder", path=root, clean_only=True))
        assert text == (
            f"{root / names[-1]}: the class folders' numbers are the labels, and no folder is called {lacks}; give the "
            "number of `classes` where not all of them occur"
        )
        assert source("folder", path=root, clean_only=True, classes=5).load(OFFLINE).labels[-1] == int(names[-1])

    def test_names_do_where_none_lacks(self, tmp_path: Path) -> None:
        root = self.fill(tmp_path / "data", ("cat", "dog"))
        assert source("folder", path=root, classes=2).load(OFFLINE).class_names == ("cat", "dog")
        text = refused(source("folder", path=root, classes=3))
        assert text == f"{root} has 2 class folders, but classes = 3: call them by their numbers, 0 to 2"

    def test_a_number_out_of_range(self, tmp_path: Path) -> None:
        root = self.fill(tmp_path / "data", ("0", "12"))
        text = refused(source("folder", path=root, classes=12))
        assert text == f"{root / '12'}: class 12 is out of range; legal: 0 to 11"

    def test_another_folder_is_the_test_set(self, tmp_path: Path) -> None:
        root = self.fill(tmp_path / "data", ("0", "1"))
        other = self.fill(tmp_path / "other", ("1", "3"), count=2)
        task = source("folder", path=root, test=other, classes=4)
        raw = task.load(OFFLINE)
        assert raw.test_labels is not None
        assert raw.test_labels.tolist() == [1, 1, 3, 3]
        assert len(task.files()) == 12
        assert "class '0' is in only one of" in refused(source("folder", path=root, test=other))
