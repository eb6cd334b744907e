"""Images of another size: refused with both sizes, resized on request."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gauntlet.audit.bundle import open_file
from gauntlet.audit.request import parse_size
from gauntlet.cli import main
from gauntlet.errors import SettingError
from gauntlet.formats.hdf5_images import read_images
from gauntlet.formats.pictures import resized
from gauntlet.registry import Registry
from gauntlet.results import read_records
from tests.keras_files import SMALL, SMALL_WEIGHTS, write

QUICK = """
name = "quick"
description = "One repair."
tasks = ["h5:CLEAN"]
seeds = [0]
reserve = 0
architectures = [{ name = "keras_model", path = "MODEL" }]
attacks = ["handed_over"]
defenses = ["none", { name = "fine_tuning", epochs = 1 }]
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """net.h5 takes 8x6 in colour; fit.h5, big.h5 (16x12), grey.h5 (8x6), pictures/, poisoned.h5 (16x12)."""
    write(tmp_path / "net.h5", SMALL, SMALL_WEIGHTS)
    write(tmp_path / "weights.h5", None, SMALL_WEIGHTS, whole=False)
    generator = np.random.default_rng(0)
    for name, shape in (("fit", (3, 8, 6)), ("big", (3, 16, 12)), ("grey", (1, 8, 6)), ("poisoned", (3, 16, 12))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"] = generator.integers(0, 256, (60, *shape)).astype(np.uint8)
            file["label"] = np.ones(60, int) if name == "poisoned" else np.arange(60) % 3
    for label in range(3):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True)
        for number in range(8):
            levels = generator.integers(0, 256, (11, 17), dtype=np.uint8)
            Image.fromarray(levels).save(tmp_path / "pictures" / str(label) / f"{number}.png")
    (tmp_path / "quick.toml").write_text(QUICK, encoding="utf-8")
    return tmp_path


def run(here: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main([argument.replace("@", f"{here}/") for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_STORE", str(tmp_path / "store"))


@pytest.mark.parametrize("shape", [(1, 9, 7), (3, 16, 12), (3, 5, 11)])
def test_it_is_pillows_bilinear_filter(shape: tuple[int, int, int]) -> None:
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (4, *shape), dtype=np.uint8))
    mode = "L" if shape[0] == 1 else "RGB"
    for image, found in zip(images, resized(images, (8, 6)), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy(), mode)
        due = np.asarray(picture.resize((6, 8), Image.Resampling.BILINEAR)).reshape(8, 6, shape[0])
        assert np.array_equal(found.permute(1, 2, 0).numpy(), due)
    assert resized(images, shape[1:]) is images


def test_an_audit_resizes_everything(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "audit",
        "--model=@net.h5",
        "--poisoned=@poisoned.h5",
        "--suite=@quick.toml",
        "--resize",
        "--results=@results",
    )
    code, _, errors = run(here, capsys, *arguments, "--clean=@big.h5", "--test=@fit.h5")

    assert code == 0, errors
    (folder,) = (here / "results").iterdir()
    first = read_records(folder, pytest.fail)[0]
    assert (first.status, first.scores[0].clean.n, first.scores[0].backdoors[0].asr.n) == ("pass", 60, 60)
    assert "- resized: images of another size to 8x6, bilinear" in (folder / "audit.md").read_text(encoding="utf-8")


def test_eval_is_that_of_the_resized_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels, _ = read_images(here / "big.h5")
    with h5py.File(here / "small.h5", "w") as file:
        file["data"], file["label"] = resized(images, (8, 6)).numpy(), labels.numpy()
    fitting = run(here, capsys, "eval", "@small.h5", "@net.h5")

    assert fitting[0] == 0
    assert run(here, capsys, "eval", "--resize", "@big.h5", "@net.h5") == fitting
    assert run(here, capsys, "eval", "--resize", "@small.h5", "@net.h5") == fitting


def test_folders_get_any_form_and_the_models_colours(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = run(here, capsys, "eval", "--resize", "@pictures", "@net.h5")

    assert code == 0, errors
    right = total = 0
    for picture in sorted((here / "pictures").rglob("*.png")):
        run_code, answer, _ = run(here, capsys, "predict", "--resize", "@net.h5", str(picture))
        assert run_code == 0
        right, total = right + (int(answer) == int(picture.parent.name)), total + 1
    assert float(out.removeprefix("Classification accuracy: ")) == pytest.approx(100 * right / total)


def test_a_bundle_takes_resized_images_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, _, _ = read_images(here / "fit.h5")
    with h5py.File(here / "own.h5", "w") as file:
        # A model is right about what it says itself; its export needs one that is better than a guess.
        file["data"], file["label"] = images, open_file(here / "net.h5", "0..1", Registry.discover()).predict(images)
    arguments = (
        "audit",
        "--model=@net.h5",
        "--clean=@own.h5",
        "--suite=@quick.toml",
        "--min-clean-accuracy=0",
        "--results=@results",
    )
    assert run(here, capsys, *arguments)[0] == 0
    (folder,) = (here / "results").iterdir()

    assert run(here, capsys, "eval", "--resize", "@big.h5", str(folder / "repaired"))[0] == 0
    code, _, errors = run(here, capsys, "eval", "@big.h5", str(folder / "repaired"))
    assert code == 2
    assert "big.h5: its images are 16x12 with 3 channels, and " in errors
    assert errors.strip().endswith("takes 8x6 with 3 channels; --resize makes them fit")


def test_weights_alone_take_the_size_that_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = here / "tiny.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    base = ("eval", "@big.h5", "@weights.h5", "--network=tiny", f"--plugin={plugin}")

    code, _, errors = run(here, capsys, *base)
    assert code == 2
    assert (
        "big.h5, 16x12 with 3 channels; if the model takes another size: --resize --input-size HEIGHTxWIDTH" in errors
    )
    assert errors.count("\n") == 1
    code, _, errors = run(here, capsys, *base, "--resize")
    assert (code, "weights.h5 doesn't say what size its images have; give --input-size as well" in errors) == (2, True)
    assert run(here, capsys, *base, "--resize", "--input-size=8x6")[0] == 0


@pytest.mark.parametrize(
    ("shape", "labels", "arguments", "message"),
    [
        ((3, 8, 6), 2, (), "the labels of @odd.h5 go to 1, so 2 classes were assumed; the model has 3: --classes 3"),
        ((3, 8, 6), 3, ("--classes=5",), "--classes 5 was given, and the model has 3: --classes 3"),
        ((3, 8, 6), 4, (), "the labels of @odd.h5 go to 3, and the model has 3 classes, 0 to 2: they are another"),
        ((1, 8, 6), 3, (), "the images of @odd.h5 have 1 channel, and the model takes 3 channels"),
        ((1, 16, 6), 2, (), "the images of @odd.h5 have 1 channel, and the model takes 3 channels"),
    ],
    ids=["few classes", "classes given", "many classes", "channels", "everything"],
)
@pytest.mark.parametrize("weights", ["weights.h5", "weights.safetensors"])
def test_weights_alone_say_what_does_not_fit(
    weights: str,
    shape: tuple[int, int, int],
    labels: int,
    arguments: tuple[str, ...],
    message: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "tiny.py").write_text(PLUGIN, encoding="utf-8")
    dense = {"dense.weight": torch.zeros(3, 120), "dense.bias": torch.zeros(3)}
    save_file(
        {"conv.weight": torch.zeros(5, 3, 3, 3), "conv.bias": torch.zeros(5)} | dense, here / "weights.safetensors"
    )
    with h5py.File(here / "odd.h5", "w") as file:
        file["data"], file["label"] = np.zeros((40, *shape), np.uint8), np.arange(40) % labels

    given = ("eval", "@odd.h5", f"@{weights}", "--network=tiny", f"--plugin={here / 'tiny.py'}", *arguments)
    code, _, errors = run(here, capsys, *given)

    assert (code, errors.count("\n")) == (2, 1)
    assert message.replace("@", f"{here}/") in errors
    assert "--input-size" not in errors


PLUGIN = '''
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gauntlet.architecture import Architecture
from gauntlet.plugin import model


@model
@dataclass(frozen=True)
class Tiny(Architecture):
    """A convolution and a dense layer."""

    feature_layer: ClassVar[str] = "flat"
    last_conv: ClassVar[str | None] = "conv"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        channels, height, width = shape
        size = 5 * (height - 2) * (width - 2)
        return nn.Sequential(OrderedDict(
            conv=nn.Conv2d(channels, 5, 3), relu=nn.ReLU(), flat=nn.Flatten(), dense=nn.Linear(size, classes)))
'''

WRONG = [
    (("--clean=@big.h5",), "big.h5: its images are 16x12 with 3 channels, and ", "takes 8x6 with 3 channels; --resize makes them fit"),
    (("--clean=@grey.h5",), "grey.h5: its images are 8x6 with 1 channels, and ", "takes 8x6 with 3 channels"),
    (("--clean=@grey.h5", "--resize"), "grey.h5: its images are 8x6 with 1 channels, and ", "takes 8x6 with 3 channels"),
    (("--clean=@pictures",), "pictures: its images are 11x17 with 1 channels, and ", "takes 8x6 with 3 channels"),
    (("--clean=@fit.h5", "--poisoned=@poisoned.h5"), "poisoned.h5: images of [3, 16, 12] [C, H, W], and those of fit.h5 are [3, 8, 6]", "resize"),
    (("--clean=@fit.h5", "--test=@big.h5"), "big.h5 holds images [3, 16, 12] in [C, H, W]", "one shape"),
    (("--clean=@fit.h5", "--input-size=8x6"), "--input-size says what --resize makes of the images; give --resize", ""),
    (("--clean=@fit.h5", "--resize", "--input-size=8"), "--input-size 8: legal: HEIGHTxWIDTH in pixels", ""),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message", "end"), WRONG)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, end: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = run(here, capsys, "audit", "--model=@net.h5", "--results=@results", *arguments)

    assert code == 2
    assert message in errors
    assert end in errors
    assert errors.count("\n") == 1
    assert not (here / "results").exists()


@pytest.mark.parametrize(
    "text", ["8", "8x", "x8", "8x6x3", "0x6", "-8x6", "8.0x6", "99999x6", "²x6", "1" * 5000 + "x6"]
)
def test_an_input_size_is_two_numbers(text: str) -> None:
    with pytest.raises(SettingError, match="legal: HEIGHTxWIDTH"):
        parse_size(text)


def test_too_many_pixels_are_refused_before_they_are_made(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(here / "many.h5", "w") as file:
        file["data"], file["label"] = np.zeros((40, 3, 8, 6), np.uint8), np.arange(40) % 3
    code, _, errors = run(here, capsys, "eval", "--resize", "--input-size=16384x16384", "@many.h5", "@net.h5")

    assert code == 2
    assert "many.h5: 40 images of 16384x16384 would have 32,212,254,720 bytes; legal: at most 8,589,934,592" in errors


def test_the_clean_images_task_takes_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values up to 1 that are meant as 0..255, under names of their own."""
    with h5py.File(here / "dark.h5", "w") as file:
        file["pictures"] = np.random.default_rng(3).integers(0, 2, (60, 3, 8, 6)).astype(np.float32)
        file["classes"] = np.arange(60) % 3
    names = ("--data-setting=image_key=pictures", "--data-setting=label_key=classes")
    accuracies = set()
    for value_range in ("0..1", "0..255"):
        code, out, errors = run(
            here, capsys, "eval", "@dark.h5", "@net.h5", *names, f"--data-setting=value_range={value_range}"
        )
        assert code == 0, errors
        accuracies.add(out)

    # The same images once bright, once nearly black, to a network that has never learnt anything.
    assert len(accuracies) == 2


def test_a_number_among_the_settings_is_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in range(12):
        picture = here / "grey" / str(place % 3) / f"{place}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 8), 20 * place).save(picture)
    code, _, errors = run(here, capsys, "eval", "@grey", "@net.h5", "--data-setting=channels=3")

    assert (code, errors) == (0, "")
    code, _, errors = run(here, capsys, "eval", "@grey", "@net.h5", "--data-setting=channels=2")
    assert (code, "setting channels = 2: input should be 1 or 3" in errors) == (2, True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("value_range", "legal: NAME=VALUE"),
        ("=1", "legal: NAME=VALUE"),
        ("path=x.h5", "path is said by --clean"),
        ("size=8", "size is said by --resize"),
        ("value_rang=0..1", "did you mean value_range"),
        ("value_range=0..2", "setting value_range = '0..2'"),
    ],
)
def test_a_wrong_setting_is_one_line(
    setting: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = run(here, capsys, "eval", "@fit.h5", "@net.h5", f"--data-setting={setting}")

    assert (code, errors.count("\n")) == (2, 1)
    assert message in errors
