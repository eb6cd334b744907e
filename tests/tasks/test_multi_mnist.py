from __future__ import annotations

import gzip
import hashlib
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from gauntlet.errors import DataError, SettingError
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.task import LoadContext, RawTask
from tasks.multi_mnist import overlaid, pairs

SHARED = Path(__file__).parents[2] / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
REGISTRY = Registry.discover()


def load(folder: Path, **settings: object) -> RawTask:
    raw: RawTask = REGISTRY.build(Kind.TASK, "multi_mnist", settings).load(LoadContext(folder, offline=True))
    return raw


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up MNIST: 6,000 and 1,000 images of noise, each with its label's grey level in the corner."""
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for part, count in (("train", 6000), ("t10k", 1000)):
        labels = draw.integers(0, 10, count, dtype=np.uint8)
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = 20 * labels
        header = struct.pack(">4I", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes(), 1))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">2I", 0x801, count) + labels.tobytes())
        )
    return folder


def test_the_canvas_by_hand() -> None:
    left, right = torch.full((1, 28, 28), 100, dtype=torch.uint8), torch.full((1, 28, 28), 7, dtype=torch.uint8)
    left[0, 0, 20], right[0, 27, 27] = 5, 200
    canvas = overlaid(left, right)[0]
    assert canvas.shape == (45, 45)
    assert not canvas[:5].any()
    assert not canvas[33:].any()
    assert canvas[5:33].all()
    # Columns 17 to 27 belong to both: the brighter one counts.
    assert canvas[5, [0, 16, 17, 20, 27, 28, 44]].tolist() == [100, 100, 100, 7, 100, 7, 7]
    assert canvas[32, 44] == 200


@given(st.lists(st.integers(0, 9), min_size=20, max_size=400))
def test_pairs_use_each_digit_once_and_smaller_sets_lie_inside(labels: list[int]) -> None:
    digits = torch.tensor(labels)
    left, right = pairs(digits, len(labels), "training")
    assert sorted(left.tolist()) == sorted(right.tolist()) == list(range(len(labels)))
    for count in (1, len(labels) // 2):
        first, second = pairs(digits, count, "training")
        assert torch.equal(first, left[:count])
        assert torch.equal(second, right[:count])
    classes = (10 * digits[left] + digits[right]).tolist()
    whole = Counter(classes)
    for count in range(0, len(labels), 7):
        most = max(Counter(classes[:count]).values(), default=0)
        # No class is ahead while another one still has pairs.
        assert all(found >= min(whole[value], most - 1) for value, found in Counter(classes[:count]).items())


def test_what_is_loaded(small: Path) -> None:
    raw = load(small, train_size=1000, test_size=200)
    assert raw.images.shape == (1000, 1, 28, 28)
    assert torch.bincount(raw.labels).tolist() == [10] * 100
    assert raw.test_labels is not None
    assert torch.bincount(raw.test_labels).tolist() == [2] * 100
    assert raw.class_names[37] == "3 7"


def test_labels_are_those_of_the_digits(small: Path) -> None:
    """Without a resize the corners of the two digits are still there to be read."""
    raw = load(small, train_size=300, size=[45, 45])
    left = raw.images[:, 0, 5, 0].long()
    assert torch.equal(left, 20 * (raw.labels // 10))


@pytest.mark.parametrize("size", [(28, 28), (55, 47), (20, 61)])
def test_the_resize_is_bilinear_and_antialiased(small: Path, size: tuple[int, int]) -> None:
    canvas = load(small, train_size=200, size=[45, 45]).images
    resized = load(small, train_size=200, size=list(size)).images
    wanted = interpolate(canvas.double(), size, mode="bilinear", antialias=True)
    assert (resized.double() - wanted).abs().max() <= 1.01


def test_colour_is_the_grey_image_three_times(small: Path) -> None:
    grey, colour = (load(small, train_size=200, channels=channels, size=[55, 47]).images for channels in (1, 3))
    assert colour.shape == (200, 3, 55, 47)
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))


def test_same_bytes_every_time(small: Path) -> None:
    first, second = (load(small, train_size=300) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


@needs_shared
def test_real_digits() -> None:
    raw = load(SHARED, train_size=200, test_size=100, size=[45, 45])
    mnist = REGISTRY.task("mnist").load(LoadContext(SHARED, offline=True))
    halves = np.ascontiguousarray(mnist.images[:, 0, :, :17].numpy())
    known = {half.tobytes(): label for half, label in zip(halves, mnist.labels.tolist(), strict=True)}
    lefts = np.ascontiguousarray(raw.images[:, 0, 5:33, :17].numpy())
    assert [known[left.tobytes()] for left in lefts] == (raw.labels // 10).tolist()


@needs_shared
def test_same_bytes_on_every_machine() -> None:
    raw = load(SHARED, train_size=200, test_size=100)
    assert raw.test_images is not None
    golden = "c4462cec0cbc2c4f0f14875f84f0810753cfd0c15104a9f2142ad3fa68ce7bca"
    assert hashlib.sha256(raw.images.numpy().tobytes() + raw.test_images.numpy().tobytes()).hexdigest() == golden


@pytest.mark.parametrize(
    "settings",
    [
        {"train_size": 199},
        {"train_size": 60_001},
        {"test_size": 99},
        {"size": [28]},
        {"size": [7, 28]},
        {"size": [28, 513]},
        {"channels": 2},
    ],
    ids=str,
)
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        REGISTRY.build(Kind.TASK, "multi_mnist", settings)


def test_without_mnist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"MNIST is not in .* and downloads are off"):
        load(tmp_path)
