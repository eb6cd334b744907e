from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gauntlet.dataset import prepare
from gauntlet.errors import DataError, SettingError
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.store import Store
from gauntlet.task import LoadContext, RawTask
from tasks._people import Head, box_around, identity_label, label_of
from tasks.head_count import compose, view

SHARED = Path(__file__).parents[2] / "../shared/data"
OFFLINE = LoadContext(Path("nowhere"), offline=True)
REGISTRY = Registry.discover()

# Three photographs of the data set and one that is not on the disk: set, photo, box, identity, subset.
INDEX = """\
100 1 10 20 8 10 7 1
100 1 40 22 6 6 9 1
100 2 0 0 10 10 7 1
101 5 5 5 4 4 3 2
101 6 1 1 4 4 9 3
"""


def lay_out(root: Path, index: str = INDEX) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "index.txt").write_text(index, encoding="utf-8")
    for place, level in (("train/100_1", 50), ("train/100_2", 100), ("test/101_5", 150), ("test/999_9", 0)):
        path = root / f"{place}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = np.full((60, 80, 3), level, dtype=np.uint8)
        if level == 50:
            pixels[20:30, 10:18] = 250
        Image.fromarray(pixels).save(path, quality=95)
    return root


def load(kind: str, context: LoadContext = OFFLINE, **settings: object) -> RawTask:
    raw: RawTask = REGISTRY.build(Kind.TASK, kind, settings).load(context)
    return raw


def refused(root: Path, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        load("pipa", OFFLINE, path=root, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestSharedCode:
    def test_boxes_by_hand(self) -> None:
        heads = [Head(10, 20, 8, 10, 7), Head(40, 22, 6, 6, 9)]
        assert box_around(heads, 0.0) == (10, 20, 46, 30)
        assert box_around(heads, 0.5) == (5, 15, 51, 35)

    @pytest.mark.parametrize(("count", "label"), [(1, 0), (4, 3), (5, 4), (9, 4)])
    def test_labels(self, count: int, label: int) -> None:
        assert label_of([Head(0, 0, 1, 1, 0)] * count) == label

    def test_the_first_person_counts(self) -> None:
        heads = [Head(0, 0, 1, 1, identity) for identity in (5, 9, 7)]
        assert identity_label(heads, [7, 9]) == 1
        assert identity_label(heads, [8, 9]) == 2
        assert identity_label(heads, [8]) == 0


class TestPipa:
    def test_by_hand(self, tmp_path: Path) -> None:
        root = lay_out(tmp_path / "pipa")
        raw = load("pipa", path=root, size=20, persons=2)
        assert raw.images.shape == (3, 3, 20, 20)
        assert raw.labels.tolist() == [1, 0, 0]
        # Person 7 is in two photographs; 3 and 9 in one each that is there.
        assert raw.auxiliary is not None
        assert raw.auxiliary.tolist() == [1, 1, 2]
        assert raw.auxiliary_names == ("nobody of them", "person 7", "person 3")
        assert raw.class_names[1] == "2 heads"
        assert raw.test_images is None

    def test_the_crop_holds_the_heads(self, tmp_path: Path) -> None:
        root = lay_out(tmp_path / "pipa")
        exact = load("pipa", path=root, size=36, margin=0.0, persons=1).images[0].float()
        # The box is (10, 20, 46, 30): the bright head fills its first 8 of 36 columns.
        assert exact[:, :, :7].mean() > 230
        assert exact[:, :, 10:].mean() < 80

    def test_boxes_may_stick_out(self, tmp_path: Path) -> None:
        root = lay_out(tmp_path / "pipa", "100 1 -5 -5 10 10 7 1\n100 2 75 55 20 20 8 1\n")
        assert load("pipa", path=root, persons=2, size=8).images.shape == (2, 3, 8, 8)

    def test_files(self, tmp_path: Path) -> None:
        root = lay_out(tmp_path / "pipa")
        names = [path.name for path in REGISTRY.task(f"pipa:{root}").files()]
        assert names == ["index.txt", "100_1.jpg", "100_2.jpg", "101_5.jpg"]

    def test_prepared(self, tmp_path: Path) -> None:
        lines = [f"1 {photo} 5 5 8 8 {head} 1" for photo in range(20) for head in range(photo % 5 + 1)]
        root = lay_out(tmp_path / "pipa", "\n".join(lines))
        for photo in range(20):
            Image.new("RGB", (30, 30), (12 * photo,) * 3).save(root / "train" / f"1_{photo}.jpg")
        task = REGISTRY.task(f"pipa:{root}", {"size": 8})
        data = prepare(task, "pipa", Store(tmp_path / "store", pytest.fail), OFFLINE)
        assert data.facts.test_counts == (1,) * 5
        assert len(data.facts.auxiliary_names) == 5
        assert data.training.auxiliary is not None
        # Everybody's head 0 is on each photograph.
        assert data.training.auxiliary.tolist() == [1] * data.facts.train_size

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ("100 1 10 20 8 10 7\n", "line 1 has 7 fields; legal: 8"),
            (INDEX + "../../x 1 10 20 8 10 7 1\n", "line 6: the photograph ../../x 1 is not called by two numbers"),
            ("100 1 10 20 8 ten 7 1\n", "line 1: the box and the identity must be whole numbers"),
            ("100 1 10 20 0 10 7 1\n", "line 1: a head of 0x10 pixels at 10, 20 is impossible"),
            ("100 1 10 99999999 8 10 7 1\n", "line 1: a head of 8x10 pixels at 10, 99999999 is impossible"),
            ("100 1 500 500 8 10 7 1\n", "100_1.jpg: the box [496, 496, 512, 514] lies outside the image"),
            ("5 5 1 1 8 10 7 1\n", "holds none of the 1 photographs of"),
            ("", "holds none of the 0 photographs of"),
            ("100 1 1 1 8 10 7 1\n", "knows 1 person(s), but persons = 4"),
        ],
        ids=["fields", "path", "words", "flat", "far", "outside", "absent", "empty", "few"],
    )
    def test_bad_indexes(self, tmp_path: Path, index: str, message: str) -> None:
        persons = 4 if "persons" in message else 1
        margin = 0.4 if "outside" in message else 0.5
        assert message in refused(lay_out(tmp_path / "pipa", index), persons=persons, margin=margin)

    def test_no_index(self, tmp_path: Path) -> None:
        assert "index.txt can't be read: No such file" in refused(tmp_path)
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "index.txt").write_bytes(b"\xff\xfe\x00")
        assert "index.txt can't be read: it is no text" in refused(tmp_path)

    def test_a_damaged_photograph(self, tmp_path: Path) -> None:
        root = lay_out(tmp_path / "pipa")
        (root / "train" / "100_2.jpg").write_bytes(b"no photograph")
        assert "100_2.jpg: the image can't be decoded" in refused(root, persons=1)


class TestHeadCount:
    def test_form(self) -> None:
        raw = load("head_count", train_size=200, test_size=100)
        assert raw.images.shape == (200, 1, 48, 48)
        assert torch.bincount(raw.labels).tolist() == [40] * 5
        assert raw.auxiliary is not None
        assert raw.test_auxiliary is not None
        counts = torch.bincount(raw.auxiliary, minlength=5)
        assert 70 <= counts[0] <= 130
        assert counts[1:].min() >= 10
        assert raw.auxiliary_names == ("nobody of them", "person 1", "person 2", "person 3", "person 4")

    def test_smaller_sets_lie_inside_larger_ones(self) -> None:
        small, large = (load("head_count", train_size=count, test_size=10) for count in (20, 40))
        assert small.auxiliary is not None
        assert large.auxiliary is not None
        assert torch.equal(small.images, large.images[:20])
        assert torch.equal(small.auxiliary, large.auxiliary[:20])

    def test_same_bytes_on_every_machine(self) -> None:
        raw = load("head_count", train_size=200, test_size=100)
        assert raw.test_images is not None
        golden = "9e9a67816ec0eda787be6ed78106ee99f0369c8e75ff0af3ed76c22a14ac6097"
        assert hashlib.sha256(raw.images.numpy().tobytes() + raw.test_images.numpy().tobytes()).hexdigest() == golden

    @pytest.mark.parametrize("persons", [1, 4])
    @pytest.mark.parametrize("count", [1, 3, 5])
    def test_scenes_show_what_their_heads_say(self, count: int, persons: int) -> None:
        """Faces of one grey level a kind: the scene's levels are the kinds that are there."""
        faces = [[np.full((14, 14), 20 + kind, dtype=np.uint8)] for kind in range(10)]
        draw = torch.Generator().manual_seed(count)
        people = []
        for _ in range(60):
            scene, heads = compose(faces, count, persons, draw)
            assert len(heads) == count
            assert {20 + head.identity for head in heads} == set(np.unique(scene).tolist()) - {0}
            assert np.count_nonzero(scene) == count * 14 * 14
            for head in heads:
                assert (scene[head.top : head.top + 14, head.left : head.left + 14] == 20 + head.identity).all()
            assert view(scene, heads, 9).shape == (9, 9)
            people.append(sum(1 <= head.identity <= persons for head in heads))
        assert set(people) == {0, 1}
        assert 15 <= sum(people) <= 45

    def test_train_and_test_scenes_are_of_different_digits(self) -> None:
        from tasks.head_count import _parts

        (first, _), (second, _) = _parts("digits", OFFLINE)
        assert len(first) + len(second) == 1797
        known = {digit.numpy().tobytes() for digit in first}
        # scikit-learn's digits have doubles of their own.
        assert sum(digit.numpy().tobytes() in known for digit in second) <= 5

    @pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
    def test_mnist(self) -> None:
        raw = load(
            "head_count", LoadContext(SHARED, offline=True), source="mnist", train_size=20, test_size=10, size=32
        )
        assert raw.images.shape == (20, 1, 32, 32)
        assert raw.images.float().mean() > 10

    @pytest.mark.parametrize("setting", [{"persons": 0}, {"persons": 5}, {"size": 7}, {"source": "cifar10"}])
    def test_settings_out_of_range(self, setting: dict[str, object]) -> None:
        with pytest.raises(SettingError, match=next(iter(setting))):
            REGISTRY.build(Kind.TASK, "head_count", setting)
