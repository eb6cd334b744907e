from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from gauntlet.dataset import prepare
from gauntlet.errors import DataError, SettingError
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.store import Store
from gauntlet.task import LoadContext, RawTask, TaskSource
from tasks.digits import enlarge

SHARED = Path(__file__).parents[2] / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
OFFLINE = LoadContext(Path("nowhere"), offline=True)
REGISTRY = Registry.discover()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, str(SHARED / "unpack.py"), str(folder)], check=True, capture_output=True)
    return folder


def source(kind: str, **settings: object) -> TaskSource:
    built: TaskSource = REGISTRY.build(Kind.TASK, kind, settings)
    return built


def refused(task: TaskSource, context: LoadContext = OFFLINE) -> str:
    """The sentence that the task is refused with."""
    with pytest.raises(DataError) as caught:
        task.load(context)
    text = str(caught.value)
    assert "\n" not in text
    return text


def encoded(
    size: tuple[int, int] = (6, 5), mode: str = "RGB", kind: str = "PNG", seed: int = 0
) -> tuple[bytes, np.ndarray[Any, Any]]:
    width, height = size
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue(), pixels


def huge_png(side: int) -> bytes:
    """A valid PNG of 100 bytes or so that claims side x side pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_all_sources_are_found() -> None:
    names = {"cifar10", "digits", "fashion_mnist", "folder", "gtsrb", "mnist", "parquet"}
    assert set(REGISTRY.classes(Kind.TASK)) >= names


class TestDigits:
    def test_form(self) -> None:
        data = source("digits").load(OFFLINE)
        assert data.images.shape == (1797, 1, 28, 28)
        assert data.images.dtype == torch.uint8
        assert data.test_images is None
        assert torch.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

    def test_same_bytes_on_every_machine(self) -> None:
        images = source("digits").load(OFFLINE).images
        golden = "28e94d53a2698536df9e8e4e8d9be89f3fdfc2bcb87ab0ac952a1b34c5fead10"
        assert hashlib.sha256(images.numpy().tobytes()).hexdigest() == golden

    @pytest.mark.parametrize("size", [8, 28, 32, 65])
    def test_enlarging_is_bilinear(self, size: int) -> None:
        grey = np.random.default_rng(0).integers(0, 17, (20, 8, 8))
        wanted = interpolate(torch.from_numpy(grey * 255 / 16)[None], (size, size), mode="bilinear")[0]
        error = np.abs(enlarge(grey, size) - wanted.numpy())
        assert error.max() <= 0.5 + 1e-9

    @pytest.mark.parametrize("size", [7, 225, 2.5])
    def test_size_out_of_range(self, size: float) -> None:
        with pytest.raises(SettingError, match="size"):
            source("digits", size=size)

    def test_prepared(self, tmp_path: Path) -> None:
        data = prepare(source("digits"), "digits", Store(tmp_path, pytest.fail), OFFLINE)
        assert (data.facts.train_size, data.facts.reserve_size, data.facts.test_size) == (1146, 202, 449)


class TestMnist:
    @needs_shared
    def test_real_files(self, real: Path, tmp_path: Path) -> None:
        store, context = Store(tmp_path, pytest.fail), LoadContext(real, offline=True)
        first = prepare(source("mnist"), "mnist", store, context)
        start = time.perf_counter()
        second = prepare(source("mnist"), "mnist", store, context)
        assert time.perf_counter() - start < 0.5
        assert first.facts == second.facts
        assert (first.facts.train_size, first.facts.reserve_size, first.facts.test_size) == (57500, 2500, 10000)
        assert first.facts.test_counts == (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
        assert first.mean == pytest.approx((0.1307,), abs=5e-4)
        assert first.std == pytest.approx((0.3081,), abs=5e-4)

    @needs_shared
    def test_equals_torchvision(self, real: Path) -> None:
        from torchvision.datasets import MNIST

        data = source("mnist").load(LoadContext(real, offline=True))
        for train, images, labels in (
            (True, data.images, data.labels),
            (False, data.test_images, data.test_labels),
        ):
            wanted = MNIST(real, train=train)
            assert images is not None
            assert labels is not None
            assert torch.equal(images[:, 0], wanted.data)
            assert torch.equal(labels, wanted.targets)

    @needs_shared
    def test_gzipped_files_do_too(self) -> None:
        data = source("mnist").load(LoadContext(SHARED, offline=True))
        assert data.images.shape == (60000, 1, 28, 28)

    def test_offline_names_the_folder(self, tmp_path: Path) -> None:
        text = refused(source("mnist"), LoadContext(tmp_path, offline=True))
        assert f"MNIST is not in {tmp_path / 'MNIST' / 'raw'} and downloads are off" in text

    @pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "gtsrb"])
    def test_failed_download_is_one_sentence(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(*_args: object, **_kwargs: object) -> None:
            raise URLError("no\nroute to host")

        monkeypatch.setattr("urllib.request.urlopen", unreachable)
        text = refused(source(name), LoadContext(tmp_path))
        assert "can't be downloaded (" in text
        assert "no route to host" in text
        assert str(tmp_path) in text


class TestIdx:
    def lay_out(self, folder: Path, *, packed: bool = False) -> None:
        raw = folder / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for part, count in (("train", 60), ("t10k", 20)):
            images = struct.pack(">4I", 0x803, count, 4, 5) + bytes(i % 251 for i in range(count * 20))
            labels = struct.pack(">2I", 0x801, count) + bytes(i % 10 for i in range(count))
            for name, content in (("images-idx3", images), ("labels-idx1", labels)):
                file = raw / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
                file.write_bytes(gzip.compress(content) if packed else content)

    @pytest.mark.parametrize("packed", [False, True])
    def test_read(self, tmp_path: Path, packed: bool) -> None:
        self.lay_out(tmp_path, packed=packed)
        data = source("fashion_mnist").load(LoadContext(tmp_path, offline=True))
        assert data.images.shape == (60, 1, 4, 5)
        assert data.images[1, 0, 0].tolist() == [20, 21, 22, 23, 24]
        assert data.labels[:12].tolist() == [*range(10), 0, 1]
        assert len(data.class_names) == 10

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda content: content[:-1], "should hold 1200 bytes, but has 1199"),
            (lambda content: content + b"x", "should hold 1200 bytes, but has 1201 or more"),
            (lambda content: b"\0\0\x0d\x03" + content[4:], "no IDX file of bytes in 3"),
            (lambda content: content[:4] + b"\xff" * 12, "no IDX file"),
            (lambda content: content[:7], "can't be read"),
        ],
    )
    def test_damaged(self, tmp_path: Path, spoil: Callable[[bytes], bytes], message: str) -> None:
        self.lay_out(tmp_path)
        file = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
        file.write_bytes(spoil(file.read_bytes()))
        text = refused(source("fashion_mnist"), LoadContext(tmp_path, offline=True))
        assert message in text
        assert str(file) in text

    def test_damaged_gzip(self, tmp_path: Path) -> None:
        self.lay_out(tmp_path, packed=True)
        file = tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
        file.write_bytes(file.read_bytes()[:40])
        assert "can't be read" in refused(source("fashion_mnist"), LoadContext(tmp_path, offline=True))


class TestCifar10:
    @pytest.fixture
    def layout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """torchvision's layout with few images, and its MD5 sums replaced by theirs."""
        from torchvision.datasets import CIFAR10

        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        draw = np.random.default_rng(0)

        def write(name: str, content: object) -> str:
            packed = pickle.dumps(content)
            (folder / name).write_bytes(packed)
            return hashlib.md5(packed).hexdigest()

        def batch(name: str, size: int) -> list[str]:
            data = draw.integers(0, 256, (size, 3072), dtype=np.uint8)
            return [name, write(name, {"data": data, "labels": [i % 10 for i in range(size)]})]

        meta = write("batches.meta", {"label_names": [f"thing {i}" for i in range(10)]})
        monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1", 40), batch("data_batch_2", 30)])
        monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 20)])
        monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
        return tmp_path

    def test_read(self, layout: Path) -> None:
        data = source("cifar10").load(LoadContext(layout, offline=True))
        assert data.images.shape == (70, 3, 32, 32)
        assert data.test_labels is not None
        assert data.test_labels.tolist() == [*range(10), *range(10)]
        assert data.class_names[3] == "thing 3"
        content = pickle.loads((layout / "cifar-10-batches-py" / "data_batch_2").read_bytes())
        assert np.array_equal(data.images[40:].reshape(30, -1).numpy(), content["data"])

    def test_a_damaged_batch_is_refused(self, layout: Path) -> None:
        file = layout / "cifar-10-batches-py" / "data_batch_1"
        file.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
        text = refused(source("cifar10"), LoadContext(layout, offline=True))
        assert f"CIFAR-10 is not in {file.parent}" in text


class TestGtsrb:
    @pytest.fixture
    def layout(self, tmp_path: Path) -> Path:
        folder = tmp_path / "gtsrb"
        images = folder / "GTSRB" / "Final_Test" / "Images"
        images.mkdir(parents=True)
        lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
        for label in range(43):
            own = folder / "GTSRB" / "Training" / f"{label:05d}"
            own.mkdir(parents=True)
            for number in range(3):
                colour = (5 * label, 0, 10 * number)
                Image.new("RGB", (20 + number, 30), colour).save(own / f"{number:05d}.ppm")
            Image.new("RGB", (50, 40), (5 * label, 0, 99)).save(images / f"{label:05d}.ppm")
            lines.append(f"{label:05d}.ppm;50;40;1;1;49;39;{label}")
        (folder / "GT-final_test.csv").write_text("\n".join(lines))
        return tmp_path

    def test_read(self, layout: Path) -> None:
        data = source("gtsrb").load(LoadContext(layout, offline=True))
        assert data.images.shape == (129, 3, 32, 32)
        assert data.test_images is not None
        assert data.test_labels is not None
        assert torch.equal(data.images[:, 0, 5, 5].long(), data.labels * 5)
        assert torch.equal(data.test_images[:, 0, 5, 5].long(), data.test_labels * 5)
        assert set(data.test_images[:, 2].flatten().tolist()) == {99}

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("00001.ppm;50;40;1;1;49;39;43", "line 2: class '43' is out of range; legal: 0 to 42"),
            ("00001.ppm;50;40;1;1;49;39;-1", "class '-1'"),
            ("00001.ppm;50;40;1;1;49;39;nan", "class 'nan'"),
            ("missing.ppm;50;40;1;1;49;39;1", "missing.ppm: the image can't be decoded"),
            ("00001.ppm", "line 2: class '' is out of range"),
            ("\x00;\n", "GTSRB"),
        ],
    )
    def test_bad_table(self, layout: Path, line: str, message: str) -> None:
        table = layout / "gtsrb" / "GT-final_test.csv"
        head = table.read_text().splitlines()[0]
        table.write_text(f"{head}\n{line}\n")
        assert message in refused(source("gtsrb"), LoadContext(layout, offline=True))

    def test_a_table_stays_in_its_folder(self, layout: Path) -> None:
        Image.new("RGB", (9, 9)).save(layout / "outside.ppm")
        table = layout / "gtsrb" / "GT-final_test.csv"
        table.write_text("Filename;ClassId\n../../../../outside.ppm;1\n")
        assert "Images/outside.ppm" in refused(source("gtsrb"), LoadContext(layout, offline=True))

    def test_offline(self, tmp_path: Path) -> None:
        assert str(tmp_path / "gtsrb") in refused(source("gtsrb"), LoadContext(tmp_path, offline=True))


def write_parquet(
    file: Path, images: list[Any], labels: list[Any], names: list[str] | None = None, kind: Any = None
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": image, "path": None} for image in images]
    table = pa.table({"image": pa.array(rows, struct_type), "label": pa.array(labels, kind or pa.int64())})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)
    return file


class TestParquet:
    def some(self, count: int = 12, **form: Any) -> list[bytes]:
        return [encoded(seed=seed, **form)[0] for seed in range(count)]

    def load(self, path: Path, **settings: object) -> RawTask:
        return source("parquet", path=path, **settings).load(OFFLINE)

    @needs_shared
    def test_real_cifar10(self, tmp_path: Path) -> None:
        store = Store(tmp_path, pytest.fail)
        cifar = source("parquet", path=SHARED / "cifar10")
        first = prepare(cifar, "parquet:cifar10", store, OFFLINE)
        start = time.perf_counter()
        second = prepare(cifar, "parquet:cifar10", store, OFFLINE)
        assert time.perf_counter() - start < 1
        assert first.facts == second.facts
        assert first.facts.shape == (3, 32, 32)
        assert (first.facts.train_size, first.facts.reserve_size, first.facts.test_size) == (47500, 2500, 10000)
        assert first.facts.test_counts == (1000,) * 10
        assert first.mean == pytest.approx((0.491, 0.482, 0.447), abs=2e-3)
        row = pq.read_table(SHARED / "cifar10" / "test-00000-of-00001.parquet").slice(7, 1).to_pylist()[0]
        wanted = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        test = second.test.open()
        assert np.array_equal(test.images(torch.tensor([7]))[0].permute(1, 2, 0).numpy(), wanted)
        assert test.labels[7] == row["label"]

    @needs_shared
    def test_registry_writes_it_with_its_path(self) -> None:
        path = SHARED / "cifar10" / "test-00000-of-00001.parquet"
        data = REGISTRY.task(f"parquet:{path}").load(OFFLINE)
        assert data.images.shape == (10000, 3, 32, 32)
        assert data.test_images is None

    def test_pixels_labels_and_names(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "train-0.parquet", self.some(), [0, 1] * 6, ["cat", "dog"])
        write_parquet(tmp_path / "test-0.parquet", self.some(4), [1, 0, 1, 0], ["cat", "dog"])
        data = self.load(tmp_path)
        assert data.class_names == ("cat", "dog")
        assert data.images.shape == (12, 3, 5, 6)
        assert np.array_equal(data.images[5].permute(1, 2, 0).numpy(), encoded(seed=5)[1])
        assert data.test_labels is not None
        assert data.test_labels.tolist() == [1, 0, 1, 0]

    def test_shards_are_joined_in_order(self, tmp_path: Path) -> None:
        images = self.some()
        write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", images[:5], [0, 1, 0, 1, 0])
        write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", images[5:], [1] * 7)
        write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", images[:2], [0, 1])
        data = self.load(tmp_path)
        assert data.labels.tolist() == [0, 1, 0, 1, 0] + [1] * 7
        assert np.array_equal(data.images[11].permute(1, 2, 0).numpy(), encoded(seed=11)[1])
        assert data.test_images is not None
        assert len(data.test_images) == 2

    def test_test_files_win_over_validation(self, tmp_path: Path) -> None:
        for split, count in (("train", 6), ("validation", 4), ("test", 2)):
            write_parquet(tmp_path / f"{split}.parquet", self.some(count), [0, 1] * (count // 2))
        data = self.load(tmp_path)
        assert (len(data.images), len(data.test_images if data.test_images is not None else ())) == (6, 2)
        assert data.provenance == "Parquet train.parquet, test.parquet"

    def test_plain_bytes_and_named_columns(self, tmp_path: Path) -> None:
        table = pa.table({"img": self.some(6), "fine_label": pa.array([0, 1, 0, 1, 0, 1], pa.int8())})
        pq.write_table(table, tmp_path / "all.parquet")
        data = self.load(tmp_path, image_column="img", label_column="fine_label")
        assert data.images.shape == (6, 3, 5, 6)

    def test_mixed_modes_become_colour(self, tmp_path: Path) -> None:
        images = [*self.some(4, mode="L"), *self.some(4), *self.some(4, mode="RGBA")]
        file = write_parquet(tmp_path / "a.parquet", images, [0, 1] * 6)
        data = self.load(file)
        assert data.images.shape == (12, 3, 5, 6)
        grey = encoded(mode="L", seed=2)[1]
        assert all(np.array_equal(data.images[2, channel].numpy(), grey) for channel in range(3))
        assert self.load(file, channels=1).images.shape == (12, 1, 5, 6)

    def test_grey_stays_grey(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", self.some(6, mode="L"), [0, 1] * 3)
        assert self.load(file).images.shape == (6, 1, 5, 6)
        assert self.load(file, channels=3).images.shape == (6, 3, 5, 6)

    def test_transparent_palettes_are_taken(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        image = Image.fromarray(encoded()[1]).quantize(4)
        image.save(stream, "PNG", transparency=b"\x00\x80\xff\xff")
        file = write_parquet(tmp_path / "a.parquet", [stream.getvalue()] * 6, [0, 1] * 3)
        wanted = np.asarray(image.convert("RGB"))
        assert np.array_equal(self.load(file).images[0].permute(1, 2, 0).numpy(), wanted)

    def test_size_resizes(self, tmp_path: Path) -> None:
        images = [encoded((6 + seed, 5), seed=seed)[0] for seed in range(6)]
        file = write_parquet(tmp_path / "a.parquet", images, [0, 1] * 3)
        assert "row 1: the image is 5x7, the first one 5x6; give a `size`" in refused(source("parquet", path=file))
        data = self.load(file, size=9)
        wanted = Image.fromarray(encoded((8, 5), seed=2)[1]).resize((9, 9), Image.Resampling.BILINEAR)
        assert np.array_equal(data.images[2].permute(1, 2, 0).numpy(), np.asarray(wanted))

    @pytest.mark.parametrize(
        ("labels", "names", "message"),
        [
            ([0, 1, -1, 0, 1, 0], None, "row 2: label -1 is out of range; legal: 0 to 1"),
            ([0, 1, 0, 1, 10**15, 1], None, "row 4: label 1000000000000000 is out of range; legal: 0 to 5"),
            ([0, 1, 2, 0, 1, 0], ["cat", "dog"], "row 2: label 2 is out of range; legal: 0 to 1"),
            ([0, 1, None, 0, 1, 0], None, "row 2: no label"),
        ],
    )
    def test_bad_labels(self, tmp_path: Path, labels: list[Any], names: list[str] | None, message: str) -> None:
        file = write_parquet(tmp_path / "train.parquet", self.some(6), labels, names)
        assert f"{file}, {message}" in refused(source("parquet", path=tmp_path))

    def test_labels_must_be_whole_numbers(self, tmp_path: Path) -> None:
        labels = [0.0, 1.0, float("nan"), 0.0, 1.0, 0.0]
        write_parquet(tmp_path / "train.parquet", self.some(6), labels, kind=pa.float64())
        assert "column 'label' holds double; legal: whole numbers" in refused(source("parquet", path=tmp_path))

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (b"not an image", "row 3: the image can't be decoded"),
            (encoded()[0][:60], "row 3: the image can't be decoded"),
            (None, "row 3: no image bytes"),
            (b"", "row 3: no image bytes"),
            (huge_png(5000), "row 3: 5000x5000 pixels; legal: at most 16,777,216"),
            (huge_png(60000), "row 3: the image can't be decoded"),
        ],
        ids=["garbage", "truncated", "null", "empty", "large", "bomb"],
    )
    def test_bad_images(self, tmp_path: Path, image: bytes | None, message: str) -> None:
        good = encoded()[0]
        file = write_parquet(tmp_path / "train.parquet", [good, good, good, image, good, b"also bad"], [0, 1] * 3)
        assert f"{file}, {message}" in refused(source("parquet", path=tmp_path))

    @pytest.mark.parametrize("channels", [None, 1, 3])
    def test_sixteen_bits_are_refused(self, channels: int | None, tmp_path: Path) -> None:
        stream = io.BytesIO()
        Image.fromarray(np.full((5, 6), 40000, dtype=np.uint16)).save(stream, "PNG")
        write_parquet(tmp_path / "train.parquet", [stream.getvalue()], [0])
        task = source("parquet", path=tmp_path, channels=channels)
        assert "mode I;16 are not taken; legal: 8 bits a channel" in refused(task)

    @pytest.mark.parametrize("content", [b"", b"PAR1 and nothing else PAR1", b"x" * 5000])
    def test_not_a_parquet_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "train.parquet").write_bytes(content)
        assert "train.parquet is no readable Parquet file" in refused(source("parquet", path=tmp_path))

    def test_truncated_file(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "train.parquet", self.some(), [0, 1] * 6)
        content = file.read_bytes()
        file.write_bytes(content[:100] + b"\xff" * 300 + content[400:])
        assert str(file) in refused(source("parquet", path=tmp_path))

    def test_no_rows(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "train.parquet", [], [])
        assert refused(source("parquet", path=tmp_path)) == f"{file} has no rows"

    def test_missing_columns(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"image": [b"x"], "name": ["y"]}), tmp_path / "train.parquet")
        text = refused(source("parquet", path=tmp_path))
        assert "no column 'label', or several; it has image, name: set label_column" in text

    def test_image_column_of_text(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"image": ["x"], "label": [0]}), tmp_path / "train.parquet")
        assert "column 'image' holds string; legal: bytes" in refused(source("parquet", path=tmp_path))

    @pytest.mark.parametrize(
        "metadata", [b"{", b"[]", b'{"info": {"features": {"label": {"names": "ab"}}}}', b"[" * 9999]
    )
    def test_hostile_metadata_is_passed_over(self, tmp_path: Path, metadata: bytes) -> None:
        file = write_parquet(tmp_path / "a.parquet", self.some(6), [0, 1] * 3)
        pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": metadata}), file)
        assert self.load(file).class_names == ("0", "1")

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ((), "has no training files; expected train-"),
            (("test.parquet",), "has no training files"),
            (("train.parquet", "more.parquet"), "more.parquet says neither train nor test"),
        ],
    )
    def test_bad_folders(self, tmp_path: Path, names: tuple[str, ...], message: str) -> None:
        for name in names:
            write_parquet(tmp_path / name, self.some(2), [0, 1])
        task = source("parquet", path=tmp_path)
        assert message in refused(task)
        with pytest.raises(DataError, match=r".+"):
            task.files()

    def test_missing_path(self, tmp_path: Path) -> None:
        assert f"{tmp_path / 'gone'} does not exist" in refused(source("parquet", path=tmp_path / "gone"))

    @pytest.mark.parametrize("name", ["", "train-1.parquet", "test-0.parquet"])
    def test_a_named_pipe_is_refused_before_it_is_opened(self, tmp_path: Path, name: str) -> None:
        write_parquet(tmp_path / "train-0.parquet", self.some(6), [0, 1] * 3)
        pipe = tmp_path / (name or "alone")
        os.mkfifo(pipe)
        task = source("parquet", path=tmp_path if name else pipe)
        assert refused(task) == f"{pipe}: it is a named pipe; due: a file"
        with pytest.raises(DataError, match="named pipe"):
            task.files()


class TestFolder:
    def fill(self, root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 4) -> None:
        for label, name in enumerate(classes):
            (root / name).mkdir(parents=True)
            for number in range(count):
                (root / name / f"{number}.png").write_bytes(encoded(seed=10 * label + number)[0])

    def test_with_own_test_set(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "train")
        self.fill(tmp_path / "test", count=2)
        data = source("folder", path=tmp_path).load(OFFLINE)
        assert data.class_names == ("cat", "dog")
        assert data.labels.tolist() == [0] * 4 + [1] * 4
        assert np.array_equal(data.images[6].permute(1, 2, 0).numpy(), encoded(seed=12)[1])
        assert data.test_labels is not None
        assert data.test_labels.tolist() == [0, 0, 1, 1]

    def test_without(self, tmp_path: Path) -> None:
        self.fill(tmp_path, ("plane", "train", "van"))
        (tmp_path / ".hidden").mkdir()
        (tmp_path / "README.txt").write_text("x")
        (tmp_path / "van" / ".DS_Store").write_text("x")
        (tmp_path / "van" / "deeper").mkdir()
        (tmp_path / "van" / "deeper" / "photo.JPG").write_bytes(encoded(kind="JPEG")[0])
        task = source("folder", path=tmp_path)
        data = task.load(OFFLINE)
        assert data.class_names == ("plane", "train", "van")
        assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 5
        assert data.test_images is None
        assert len(task.files()) == 13

    def test_through_the_store(self, tmp_path: Path) -> None:
        root, store = tmp_path / "data", Store(tmp_path / "store", pytest.fail)
        self.fill(root, count=8)
        task = REGISTRY.task(f"folder:{root}")
        first = prepare(task, f"folder:{root}", store, OFFLINE).facts
        shutil.copy(root / "cat" / "1.png", root / "cat" / "9.png")
        second = prepare(task, f"folder:{root}", store, OFFLINE).facts
        assert (sum(first.test_counts), first.train_size + first.reserve_size) == (4, 12)
        assert sum(second.train_counts + second.reserve_counts + second.test_counts) == 17
        assert first.hash != second.hash

    def test_links(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "elsewhere", ("dog", "eel"))
        self.fill(tmp_path / "data", ("cat",))
        (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
        (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
        task = source("folder", path=tmp_path / "data")
        assert task.load(OFFLINE).labels.tolist() == [0] * 4 + [1] * 4
        assert len(task.files()) == 8

    def test_an_empty_class(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        (tmp_path / "eel").mkdir()
        assert f"class folder {tmp_path / 'eel'} holds no image" in refused(source("folder", path=tmp_path))

    def test_classes_must_agree(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "train")
        self.fill(tmp_path / "val", ("cat", "eel"))
        assert "class 'dog' is in only one of" in refused(source("folder", path=tmp_path))

    def test_a_bad_image_is_named(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        (tmp_path / "dog" / "2.png").write_bytes(b"no")
        assert f"{tmp_path / 'dog' / '2.png'}: the image can't be decoded" in refused(source("folder", path=tmp_path))

    def test_no_classes_and_no_folder(self, tmp_path: Path) -> None:
        assert "has no class folders" in refused(source("folder", path=tmp_path))
        gone = source("folder", path=tmp_path / "gone")
        assert f"folder {tmp_path / 'gone'} can't be read: No such file" in refused(gone)
        with pytest.raises(DataError, match="gone can't be read"):
            gone.files()

    def test_one_class_is_no_task(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "data", ("cat",))
        with pytest.raises(DataError, match=r"1 class\(es\)"):
            prepare(source("folder", path=tmp_path / "data"), "x", Store(tmp_path / "store", pytest.fail), OFFLINE)
