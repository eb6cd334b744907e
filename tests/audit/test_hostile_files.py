"""Damaged, wrong and hostile files through the commands: one line that names the file and the cause, exit code 2, nothing
written.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gauntlet.cli import main
from tests.keras_files import drawn, functional, layer, source, write

LAYERS = (
    source(8, 6, 3),
    layer("Conv2D", "conv", "input", filters=5, kernel_size=[3, 3], activation="relu"),
    layer("Flatten", "flat", "conv"),
    layer("Dense", "dense", "flat", units=3),
)
WEIGHTS = {"conv": drawn(1, kernel=(3, 3, 3, 5), bias=(5,)), "dense": drawn(2, kernel=(120, 3), bias=(3,))}
Make = Callable[[Path], object]


class Malice:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("owned"),))


def data(path: Path, images: object = None, labels: object = None, **extra: object) -> None:
    """An HDF5 file of 30 images of 8x6 in colour, or of what is given."""
    with h5py.File(path, "w") as file:
        file["data"] = np.full((30, 3, 8, 6), 7, np.uint8) if images is None else images
        file["label"] = np.arange(30) % 3 if labels is None else labels
        for name, value in extra.items():
            file[name] = value


def keys(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = np.zeros((3, 3, 8, 6)), np.zeros(3)


def declared(path: Path, name: str, shape: tuple[int, ...]) -> None:
    """A file that declares an array without holding it."""
    with h5py.File(path, "w") as file:
        file.create_dataset(name, shape, "f4", chunks=(1, *shape[1:]))
        file["label"] = np.zeros(3)


def cut(path: Path) -> None:
    data(path)
    path.write_bytes(path.read_bytes()[:1000])


def linked(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink("/etc/passwd", "data")


def changed(path: Path, *places: object) -> None:
    """The network with another layer in front of its dense one."""
    write(path, functional(*LAYERS[:3], *places, LAYERS[3] | {"inbound_nodes": [[["odd", 0, 0, {}]]]}), WEIGHTS)  # type: ignore[arg-type]


def with_weights(path: Path, **weights: Any) -> None:
    write(path, functional(*LAYERS), WEIGHTS | weights)


def zipped(path: Path) -> None:
    """As torch.save writes it, with a pickle that runs something."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Malice()))
        archive.writestr("archive/version", "3\n")


def whole(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def bomb(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate((1 << 32) + 1)


def header(path: Path) -> None:
    """safetensors whose header promises more than there is."""
    text = json.dumps({"conv.weight": {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)


NAN = np.full(5, np.nan, np.float32)
MODELS: dict[str, tuple[str, Make, str]] = {
    "empty": ("m.h5", lambda path: path.write_bytes(b""), "is no HDF5 file"),
    "text": ("m.h5", lambda path: path.write_text("no model"), "is no HDF5 file"),
    "truncated": ("m.h5", cut, "truncated file"),
    "a pickle called HDF5": ("m.h5", lambda path: path.write_bytes(pickle.dumps(Malice())), "is no HDF5 file"),
    "a pickle called torch": ("m.pt", lambda path: path.write_bytes(pickle.dumps(Malice())), "can't be read as weights"),
    "a zipped pickle": ("m.pt", zipped, "can't be read as weights"),
    "a whole module": ("m.pt", whole, "can't be read as weights"),
    "a pickle called safetensors": ("m.safetensors", lambda path: path.write_bytes(pickle.dumps(Malice())), "can't be read as weights"),
    "a gigantic header": ("m.safetensors", header, "can't be read as weights"),
    "a gigantic file": ("m.pt", bomb, "bytes; legal: at most"),
    "an empty safetensors": ("m.safetensors", lambda path: save_file({}, path), "m.safetensors holds no tensors"),
    "an empty torch file": ("m.pt", lambda path: torch.save({}, path), "m.pt holds no tensors"),
    "an empty state_dict": ("m.pt", lambda path: torch.save({"state_dict": {}}, path), "m.pt holds no tensors"),
    "a torch file of nothing": ("m.pt", lambda path: path.write_bytes(b""), "can't be read as weights"),
    "NaN weights": ("m.h5", lambda path: with_weights(path, conv=WEIGHTS["conv"] | {"bias": NAN}), "conv/conv/bias:0 holds NaN"),
    "NaN in safetensors": ("m.safetensors", lambda path: save_file({"conv.weight": torch.full((5, 3, 3, 3), float("nan"))}, path), "m.safetensors"),
    "weights of another shape": ("m.h5", lambda path: with_weights(path, dense=drawn(2, kernel=(121, 3), bias=(3,))), "dense/dense/kernel:0 has the shape [121, 3]"),
    "a description without weights": ("m.json", lambda path: path.write_text(json.dumps(functional(*LAYERS))), "m.json describes a network without its weights"),
    "a missing layer": ("m.h5", lambda path: write(path, functional(*LAYERS), {"conv": WEIGHTS["conv"]}), "for the layer dense"),
    "a lambda layer": ("m.h5", lambda path: changed(path, layer("Lambda", "odd", "flat", function=["4wEAAA==", None, None])), "layer odd (Lambda): this kind of layer is not supported"),
    "a custom layer": ("m.h5", lambda path: changed(path, layer("Evil", "odd", "flat") | {"module": "evil.layers"}), "layer odd (Evil): it is a custom layer"),
    "gigantic layers": ("m.h5", lambda path: changed(path, layer("Dense", "odd", "flat", units=1 << 40)), "layer odd (Dense): units = "),
    "weights alone": ("m.h5", lambda path: write(path, None, WEIGHTS, whole=False), "has no model_config, so that it holds weights only"),
    "an external link": ("m.h5", linked, "data is a link (ExternalLink)"),
    "another suffix": ("m.pkl", lambda path: path.write_bytes(pickle.dumps(Malice())), "files named *.pkl don't say what network"),
    "an ONNX file that is none": ("m.onnx", lambda path: path.write_bytes(b"no model"), "is no ONNX file, or a damaged one"),
}  # fmt: skip
CLEAN: dict[str, tuple[str, Make, str]] = {
    "empty": ("c.h5", lambda path: path.write_bytes(b""), "is no HDF5 file"),
    "truncated": ("c.h5", cut, "truncated file"),
    "a pickle": ("c.h5", lambda path: path.write_bytes(pickle.dumps(Malice())), "is no HDF5 file"),
    "wrong keys": ("c.h5", keys, "has no array 'data'; it has: images, labels"),
    "no images": ("c.h5", lambda path: data(path, np.zeros((0, 3, 8, 6)), np.zeros(0)), "there is no image in it"),
    "labels out of range": ("c.h5", lambda path: data(path, labels=np.full(30, 3)), "label 3 of image 0 is out of range; legal: 0 to 2"),
    "negative labels": ("c.h5", lambda path: data(path, labels=np.full(30, -1)), "label[0] = -1; legal: whole numbers from 0"),
    "labels between numbers": ("c.h5", lambda path: data(path, labels=np.full(30, 0.5)), "label[0] = 0.5; legal: whole numbers"),
    "labels of another count": ("c.h5", lambda path: data(path, labels=np.zeros(7)), "label has the shape [7]; due: one label for each"),
    "NaN": ("c.h5", lambda path: data(path, np.full((30, 3, 8, 6), np.nan)), "data holds values from nan to nan"),
    "values above 255": ("c.h5", lambda path: data(path, np.full((30, 3, 8, 6), 256)), "data holds values from 256 to 256"),
    "another size": ("c.h5", lambda path: data(path, np.zeros((30, 3, 9, 6))), "its images are 9x6 with 3 channels"),
    "another number of channels": ("c.h5", lambda path: data(path, np.zeros((30, 1, 8, 6))), "its images are 8x6 with 1 channels"),
    "no layout": ("c.h5", lambda path: data(path, np.zeros((30, 7, 8, 6))), "with 1 or 3 channels"),
    "text": ("c.h5", lambda path: data(path, np.array([b"a"] * 30)), "data has the type |S1"),
    "gigantic": ("c.h5", lambda path: declared(path, "data", (1 << 40, 3, 8, 6)), "bytes; legal: at most"),
    "declared and not there": ("c.h5", lambda path: declared(path, "data", (3, 3, 8, 6)), "but the file holds 0 bytes of it"),
    "an external link": ("c.h5", linked, "data is a link (ExternalLink)"),
    "an empty folder": ("c", lambda path: path.mkdir(), "has no class folders"),
    "a class without images": ("c", lambda path: (path / "0").mkdir(parents=True), "holds no image"),
    "absent": ("c.h5", lambda path: None, "no such file or folder"),
    "another suffix": ("c.csv", lambda path: path.write_text("1,2"), "no task reads files named *.csv"),
}  # fmt: skip
PICTURES: dict[str, tuple[str, Make, str]] = {
    "outside": ("t.png@4,0:0", lambda path: Image.new("RGB", (3, 3)).save(path), "leaves the 6x8 images"),
    "too large": ("t.png@0,0:0", lambda path: Image.new("RGB", (60, 3)).save(path), "is larger than the 6x8 images"),
    "transparent": ("t.png@0,0:0", lambda path: Image.new("RGBA", (2, 2)).save(path), "every pixel of the picture is transparent"),
    "no picture": ("t.png@0,0:0", lambda path: path.write_text("none"), "is no PNG or JPEG picture"),
    "16 bits": ("t.png@0,0:0", lambda path: Image.new("I;16", (2, 2), 9000).save(path), "images of mode I;16 are not taken"),
    "a class that is none": ("t.png@0,0:3", lambda path: Image.new("RGB", (2, 2)).save(path), "3 classes; legal: 0 to 2"),
    "gigantic": ("t.png@0,0:0", lambda path: Image.new("1", (5000, 5000)).save(path), "pixels; legal: at most"),
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """m.h5 and c.h5 are good."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAUNTLET_STORE", str(tmp_path / "store"))
    (tmp_path / "good").mkdir()
    with_weights(tmp_path / "good" / "m.h5")
    data(tmp_path / "good" / "c.h5")
    return tmp_path


def refused(arguments: list[str], name: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert name in captured.err
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (here / "results").exists()
    assert not (here / "owned").exists()


@pytest.mark.parametrize("command", ["audit", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model(name: str, command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, make, message = MODELS[name]
    if file.endswith(".onnx"):
        pytest.importorskip("onnx", reason="the extra onnx is not installed")
    make(here / file)
    network = ["--network=shallow_net"] if file.endswith((".pt", ".safetensors")) else []
    given = ["--model", file, "--clean=good/c.h5"] if command == "audit" else ["good/c.h5", file]

    refused([command, *given, *network], file, message, here, capsys)


def test_predict_takes_no_description(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, make, message = MODELS["a description without weights"]
    make(here / "m.json")
    Image.new("RGB", (6, 8)).save(here / "i.png")

    refused(["predict", "m.json", "i.png"], "m.json", message, here, capsys)


@pytest.mark.parametrize("command", ["audit", "eval"])
@pytest.mark.parametrize("name", CLEAN)
def test_bad_clean_images(name: str, command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, make, message = CLEAN[name]
    make(here / file)
    given = ["--model=good/m.h5", "--clean", file] if command == "audit" else [file, "good/m.h5"]

    refused([command, *given], file, message, here, capsys)


@pytest.mark.parametrize("name", [name for name in CLEAN if CLEAN[name][0] == "c.h5"])
def test_bad_poisoned_images(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, make, message = CLEAN[name]
    make(here / "p.h5")
    others = {"labels out of range": "the label 3 stands there", "absent": "no such file"}
    sizes = "images of [" if "its images are" in message else ""

    given = ["audit", "--model=good/m.h5", "--clean=good/c.h5", "--poisoned=p.h5", "--only=none"]
    refused(given, "p.h5", others.get(name, sizes or message), here, capsys)


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_trigger(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, make, message = PICTURES[name]
    make(here / "t.png")

    refused(
        ["audit", "--model=good/m.h5", "--clean=good/c.h5", "--trigger", text],
        "trigger t" if ":3" in text else "t.png",
        message,
        here,
        capsys,
    )
