"""Images of another size than the model's: refused by name, made to fit on request."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from gauntlet.audit.request import parse_size
from gauntlet.cli import main
from gauntlet.errors import SettingError
from gauntlet.formats.pictures import resized
from gauntlet.results import read_records
from tests.keras_files import layer, sequential, write

CLASSES = 2


def test_resized_as_pillow_does_it() -> None:
    images = torch.randint(0, 256, (3, 3, 20, 31), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for height, width in ((20, 31), (7, 12), (41, 31)):
        found = resized(images, (height, width))
        assert found.shape == (3, 3, height, width)
        for image, one in zip(images, found, strict=True):
            shown = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BILINEAR)
            wanted = torch.from_numpy(np.array(shown)).permute(2, 0, 1)
            assert (one.int() - wanted.int()).abs().max() <= 1


@pytest.mark.parametrize(("text", "size"), [("", (0, 0)), ("55x47", (55, 47)), ("1X4096", (1, 4096))])
def test_sizes_as_the_user_writes_them(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["55", "55x", "x47", "0x5", "55x47x3", "-5x5", "5000x5", "axb", "5 x 5"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="legal: HEIGHTxWIDTH"):
        parse_size(text)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Keras model of 6x4 images that tells dark from light, and such images of 12x10: HDF5, poisoned, a folder."""
    levels = np.linspace(0, 0.3, 24, dtype=np.float32)
    images = np.concatenate([levels, 1 - levels])[:, None, None, None] * np.ones((1, 12, 10, 1), dtype=np.float32)
    labels = np.repeat([0, 1], 24)
    for name, wanted in (("clean", labels), ("poisoned", 1 - labels)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"], file["label"] = images, wanted
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "photos" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image[..., 0]).astype(np.uint8)).save(tmp_path / "photos" / str(label) / f"{row}.png")
    kernel = np.stack([np.full(24, -1.0), np.full(24, 1.0)], axis=1).astype(np.float32)
    config = sequential(
        layer("Flatten", "f", batch_input_shape=[None, 6, 4, 1]), layer("Dense", "d", units=CLASSES, use_bias=True)
    )
    bias = np.array([12.0, -12.0], dtype=np.float32)
    write(tmp_path / "net.h5", config, {"d": {"kernel": kernel, "bias": bias}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAUNTLET_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.mark.parametrize("clean", ["clean.h5", "photos"])
def test_an_audit_resizes_on_request_alone(clean: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["audit", "--model=net.h5", f"--clean={clean}", "--poisoned=poisoned.h5", "--only=fine_tuning"]
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert f"{clean}: the images are 12 high and 10 wide, net.h5 takes 6 high and 4 wide; --resize" in said
    assert said.count("\n") == 1
    assert not (files / "results").exists()

    assert main([*asked, "--resize"]) == 0
    (folder,) = (files / "results").iterdir()
    (score,) = read_records(folder, pytest.fail)[0].scores
    assert score.clean.hits == score.clean.n > 0
    assert [backdoor.asr.hits for backdoor in score.backdoors] == [0, 0]
    assert all(backdoor.asr.n == 24 for backdoor in score.backdoors)


def test_eval_resizes_on_request_alone(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "clean.h5", "net.h5"]) == 2
    assert "--resize makes them fit" in capsys.readouterr().err
    assert main(["eval", "clean.h5", "net.h5", "--resize"]) == 0
    assert capsys.readouterr().out == "Classification accuracy: 100.0\n"
    assert main(["eval", "photos", "net.h5", "--resize=6x4"]) == 0
    assert main(["eval", "clean.h5", "net.h5", "--resize=6x5"]) == 2
    assert "net.h5 takes 6 high and 4 wide" in capsys.readouterr().err


def test_a_model_that_doesnt_say_its_size_needs_one(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["audit", "--model=net.h5", "--network=simple_cnn", "--clean=clean.h5", "--resize"]
    assert main(arguments) == 2
    assert "net.h5 doesn't say its size; give --resize HEIGHTxWIDTH" in capsys.readouterr().err
    assert main([*arguments[:3], "--clean=digits:x", "--resize=28x28"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
