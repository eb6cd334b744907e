"""HDF5 files that were made to harm, and images in honest ones."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gauntlet.errors import DataError
from gauntlet.formats.hdf5 import DATA_LIMIT, WEIGHTS_LIMIT, opened
from gauntlet.formats.hdf5_images import read_images, read_labels

h5py = pytest.importorskip("h5py")
LABELS = np.arange(4)


def made(path: Path, fill: Callable[[Any], object]) -> Path:
    with h5py.File(path, "w") as file:
        fill(file)
    return path


def images_in(path: Path, data: Any, label: Any = LABELS) -> Path:
    return made(path, lambda file: [file.create_dataset("data", data=data), file.create_dataset("label", data=label)])


def _cut(path: Path) -> None:
    images_in(path, np.ones((4, 3, 8, 8)))
    path.write_bytes(path.read_bytes()[:1500])


def _beheaded(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))


def _garbled(path: Path) -> None:
    images_in(path, np.ones((4, 3, 8, 8)))
    content = bytearray(path.read_bytes())
    content[96:900] = bytes(range(256)) * 3 + bytes(36)
    path.write_bytes(bytes(content))


def _gigantic(path: Path) -> None:
    made(path, lambda file: file.create_dataset("data", (2**40, 3, 55, 47), "f4", chunks=(1, 3, 55, 47)))


def _unwritten(path: Path) -> None:
    made(path, lambda file: file.create_dataset("data", (1000, 3, 55, 47), "f4", chunks=(1, 3, 55, 47)))


def _bomb(path: Path) -> None:
    def fill(file: Any) -> None:
        data = file.create_dataset("data", (2**18, 3, 32, 32), "u1", chunks=(1, 3, 32, 32), compression="gzip")
        data[0] = 1

    made(path, fill)


def _huge_chunk(path: Path) -> None:
    size, chunk = (4, 1, 2**15, 2**15), (2, 1, 2**14, 2**15)
    try:
        made(path, lambda file: file.create_dataset("data", size, "f8", maxshape=(None,) * 4, chunks=chunk))
    except ValueError as error:
        pytest.skip(f"this HDF5 writes no such chunk: {error}")


def _virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((4, 3, 8, 8), "f4")
    layout[0] = h5py.VirtualSource("/etc/passwd", "data", (3, 8, 8))
    made(path, lambda file: file.create_virtual_dataset("data", layout))


def _external(path: Path) -> None:
    made(path, lambda file: file.create_dataset("data", (4, 1, 2, 2), "u1", external=[("/etc/passwd", 0, 16)]))


def _looped(path: Path) -> None:
    made(path, lambda file: file.create_group("a").__setitem__("again", file["a"]))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_cut, "can't be read|a truncated or damaged HDF5 file"),
    "a signature alone": (_beheaded, "can't be read|a truncated or damaged HDF5 file"),
    "garbled": (_garbled, "can't be read"),
    "no HDF5": (lambda path: path.write_bytes(b"PK\x03\x04 nothing"), "is no HDF5 file"),
    "empty": (lambda path: path.write_bytes(b""), "is no HDF5 file"),
    "a pickle in disguise": (lambda path: path.write_bytes(pickle.dumps({"data": [1]})), "is no HDF5 file"),
    "a folder": (lambda path: path.mkdir(), "bad.h5: it is a folder; due: a file"),
    "absent": (lambda path: None, "can't be read: No such file"),
    "gigantic": (_gigantic, r"data is declared as \[1099511627776, 3, 55, 47\] of float32, .* bytes; legal: at most"),
    "never written": (_unwritten, "but the file holds 0 bytes of it"),
    "a bomb": (_bomb, "data is declared as .* of uint8, but the file holds .* bytes of it"),
    "a gigantic chunk": (_huge_chunk, "bytes; legal: at most"),
    "virtual": (_virtual, "data keeps its values in other files"),
    "external": (_external, "data keeps its values in other files"),
    "a soft link": (lambda path: made(path, lambda file: file.__setitem__("data", h5py.SoftLink("/x"))), r"data is a link \(SoftLink\)"),
    "an external link": (lambda path: made(path, lambda file: file.__setitem__("data", h5py.ExternalLink("/etc/passwd", "/"))), r"data is a link \(ExternalLink\)"),
    "groups in a loop": (_looped, "its groups hold each other"),
    "objects": (lambda path: made(path, lambda file: file.create_dataset("data", data=["a", "b"], dtype=h5py.string_dtype())), "has the type object"),
    "complex": (lambda path: images_in(path, np.ones((4, 3, 8, 8), complex)), "has the type complex128; legal"),
    "nothing in it": (lambda path: made(path, lambda file: None), "has no array 'data'; it has: none"),
    "another key": (lambda path: made(path, lambda file: file.create_dataset("x", data=LABELS)), "has no array 'data'; it has: x"),
    "no labels": (lambda path: made(path, lambda file: file.create_dataset("data", data=np.ones((4, 3, 8, 8)))), "has no array 'label'; it has: data"),
    "counts": (lambda path: images_in(path, np.ones((5, 3, 8, 8))), r"label has the shape \[4\]; due: one label for each of the 5 images"),
    "no images": (lambda path: images_in(path, np.ones((0, 3, 8, 8)), LABELS[:0]), "there is no image in it"),
    "negative values": (lambda path: images_in(path, -np.ones((4, 3, 8, 8))), "holds values from -1 to -1; legal: 0..1"),
    "too large values": (lambda path: images_in(path, np.full((4, 3, 8, 8), 300.0)), "holds values from 300 to 300; legal: 0..255"),
    "NaN": (lambda path: images_in(path, np.full((4, 3, 8, 8), np.nan)), "holds values from nan to nan; legal: 0..255, without NaN"),
    "infinite": (lambda path: images_in(path, np.full((4, 3, 8, 8), np.inf)), "legal: 0..255, without NaN"),
    "fractional labels": (lambda path: images_in(path, np.ones((4, 3, 8, 8)), LABELS / 2), r"label\[1\] = 0.5; legal: whole numbers from 0"),
    "negative labels": (lambda path: images_in(path, np.ones((4, 3, 8, 8)), LABELS - 1), r"label\[0\] = -1; legal"),
    "NaN labels": (lambda path: images_in(path, np.ones((4, 3, 8, 8)), LABELS * np.nan), r"label\[0\] = nan; legal"),
    "gigantic labels": (lambda path: images_in(path, np.ones((4, 3, 8, 8)), LABELS + 1e18), r"label\[0\] = 1e\+18; legal"),
    "no layout fits": (lambda path: images_in(path, np.ones((4, 5, 8, 8))), r"has the shape \[4, 5, 8, 8\]; legal: \[N, C, H, W\], \[N, H, W, C\]"),
    "two layouts fit": (lambda path: images_in(path, np.ones((4, 3, 8, 3))), "may be NCHW or NHWC; give a `layout`"),
    "a row an image": (lambda path: images_in(path, np.ones((4, 784))), r"has the shape \[4, 784\]; legal"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    path = tmp_path / "bad.h5"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        read_images(path)
    assert "bad.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_limit_holds_before_anything_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "big.h5"
    _gigantic(path)
    tracemalloc.start()
    with opened(path) as file:
        for limit in (DATA_LIMIT, WEIGHTS_LIMIT):
            with pytest.raises(DataError, match=r"big\.h5: data is declared"):
                file.array("data", limit)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_the_contests_own_form_is_read(tmp_path: Path) -> None:
    """NCHW float 0..255, labels as floats."""
    levels = np.random.default_rng(0).integers(0, 256, (4, 3, 55, 47))
    path = images_in(tmp_path / "clean.h5", levels.astype("f4"), LABELS.astype("f8"))

    images, labels, _ = read_images(path)

    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(levels).to(torch.uint8))
    assert labels.tolist() == [0, 1, 2, 3]
    shape, again = read_labels(path)
    assert (shape, again.tolist()) == ((3, 55, 47), [0, 1, 2, 3])


@given(
    layout=st.sampled_from(["nchw", "nhwc", "grey"]),
    form=st.sampled_from(["u1", "i4", ">f4", "f8", "unit"]),
    count=st.integers(1, 40),
    stated=st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_form_gives_the_same_levels(
    layout: str, form: str, count: int, stated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gauntlet.formats.hdf5_images._PART", 3000)  # several parts
    levels = np.random.default_rng(count).integers(0, 256, (count, 1 if layout == "grey" else 3, 6, 5))
    levels[0, 0, 0, 0] = 255
    stored: Any = levels[:, 0] if layout == "grey" else levels if layout == "nchw" else levels.transpose(0, 2, 3, 1)
    stored = stored / 255 if form == "unit" else stored.astype(form)
    path = images_in(tmp_path / "some.h5", stored, np.arange(count)[:, None])
    kind: Any = {
        "layout": layout if layout != "grey" else "auto",
        "value_range": "0..1" if form == "unit" else "0..255",
    }

    images, labels, _ = read_images(path, **(kind if stated else {}))

    assert np.array_equal(images.numpy(), levels)
    assert labels.tolist() == list(range(count))


def test_fractions_of_a_level_are_rounded(tmp_path: Path) -> None:
    path = images_in(tmp_path / "some.h5", np.array([0.4, 0.6, 254.6, 3]).reshape(4, 1, 1, 1).repeat(2, 2))

    assert read_images(path, layout="nchw")[0][:, 0, 0, 0].tolist() == [0, 1, 255, 3]


def test_a_stated_range_is_held(tmp_path: Path) -> None:
    path = images_in(tmp_path / "some.h5", np.full((4, 3, 8, 8), 2, "u1"))

    with pytest.raises(DataError, match=r"holds values from 2 to 2; legal: 0..1"):
        read_images(path, value_range="0..1")
    assert read_images(path)[0].eq(2).all()
    with pytest.raises(DataError, match=r"legal: \[N, H, W, C\] with 1 or 3 channels"):
        read_images(path, layout="nhwc")


@pytest.mark.parametrize("form", ["u1", "i8", "?"])
def test_whole_numbers_that_end_at_1_are_doubted(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gauntlet.formats.hdf5_images._PART", 400)  # several parts
    levels = np.zeros((4, 3, 8, 8))
    levels[3] = 1
    path = images_in(tmp_path / "masks.h5", levels.astype(form))

    assert "masks.h5: data holds no whole number above 1" in (doubt := read_images(path)[2].doubt)
    assert doubt.endswith("say value_range=0..1")
    assert read_images(path, value_range="0..255")[2].doubt == ""
    images, _, stated = read_images(path, value_range="0..1")
    assert (int(images.max()), stated.doubt) == (255, "")


@pytest.mark.parametrize(("count", "top"), [(4, 2), (4, 0), (1, 1)])
def test_other_whole_numbers_are_not(count: int, top: int, tmp_path: Path) -> None:
    levels = np.zeros((count, 1, 8, 8), "u1")
    levels[-1] = top
    for form in ("u1", "i4"):
        path = images_in(tmp_path / "some.h5", levels.astype(form), np.arange(count))
        assert read_images(path)[2].doubt == ""
