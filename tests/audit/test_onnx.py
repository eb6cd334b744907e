"""An ONNX model through the commands: the same answers as the network that it was made from."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gauntlet.audit.bundle import open_bundle
from gauntlet.cli import main
from gauntlet.mounting import mount
from gauntlet.pipeline import Context, tools_for
from gauntlet.registry import Registry
from gauntlet.results import read_records
from tests.onnx_files import exported, node, proto, write
from tests.sample_cases import CaseMaker

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnx2torch", reason="the extra onnx is not installed")
BRIEF = """
name = "brief"
description = "Three defenses, briefly."
tasks = ["h5:CLEAN"]
seeds = [0]
reserve = 0
architectures = [{ name = "onnx_model", path = "MODEL" }]
attacks = ["handed_over"]
defenses = ["none", { name = "fine_tuning", epochs = 20 }, { name = "fine_pruning", rule = "contest", epochs = 20 }]
"""


@pytest.fixture(scope="session")
def given(context: Context, make_case: CaseMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx, clean.h5, poisoned.h5, answers.npy: a BadNet on the digits, and its answers on the clean images."""
    folder = tmp_path_factory.mktemp("onnx")
    tools = tools_for(make_case("badnets"), 0, context)
    network = mount(make_case("badnets").attack, tools).value.network
    mean, std = (value.numpy().reshape(1, 1, 1) for value in (network.normalise.mean, network.normalise.std))
    assert isinstance(network.body, nn.Sequential)
    nodes, arrays = exported(network.body.named_children(), "normal")
    before = [node("Sub", "images mean", "centred", "sub"), node("Div", "centred std", "normal", "div")]
    write(folder / "net.onnx", proto([*before, *nodes], arrays | {"mean": mean, "std": std}, ("N", 1, 28, 28)))
    test = tools.data.test.open()
    images, labels = test.images(), test.labels
    with torch.no_grad():
        np.save(folder / "answers.npy", network.eval()(images / 255).argmax(1).numpy())
    triggered = images[labels != 0].clone()
    triggered[:, :, -3:, -3:] = 255
    for name, pixels, wanted in (("clean", images, labels), ("poisoned", triggered, torch.zeros(len(triggered)))):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["data"], file["label"] = pixels.numpy(), wanted.long().numpy()
    (folder / "brief.toml").write_text(BRIEF, encoding="utf-8")
    return folder


def test_eval_gives_the_networks_own_accuracy(
    given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GAUNTLET_STORE", str(tmp_path))
    with h5py.File(given / "clean.h5") as file:
        due = float((np.load(given / "answers.npy") == file["label"][:]).mean())

    assert main(["eval", str(given / "clean.h5"), str(given / "net.onnx")]) == 0
    assert float(capsys.readouterr().out.removeprefix("Classification accuracy: ")) == pytest.approx(100 * due)
    assert main(["eval", str(given / "poisoned.h5"), str(given / "net.onnx")]) == 0
    assert float(capsys.readouterr().out.removeprefix("Classification accuracy: ")) > 95


def test_predict_takes_the_file_itself(given: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with h5py.File(given / "clean.h5") as file:
        pixels = file["data"][:4, 0]
    for row, due in enumerate(np.load(given / "answers.npy")[:4]):
        Image.fromarray(pixels[row]).save(tmp_path / "image.png")
        assert main(["predict", str(given / "net.onnx"), str(tmp_path / "image.png")]) == 0
        assert int(capsys.readouterr().out) == due


def test_predict_says_why_it_cannot(given: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    for file, message in (
        ("weights.safetensors", "weights.safetensors is no model that describes itself"),
        ("bad.onnx", "bad.onnx is no ONNX file, or a damaged one"),
        ("gone.onnx", "gone.onnx is no bundle: no such file or folder"),
    ):
        assert main(["predict", str(tmp_path / file), str(tmp_path / "image.png")]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""


def test_an_audit_repairs_it_and_exports_a_bundle(given: Path, tmp_path: Path) -> None:
    arguments = [
        f"--model={given / 'net.onnx'}", f"--clean={given / 'clean.h5'}", f"--poisoned={given / 'poisoned.h5'}",
        f"--suite={given / 'brief.toml'}", f"--store={tmp_path / 'store'}", f"--results={tmp_path / 'results'}",
        "--min-clean-accuracy=0.5", "--max-asr=1",
    ]  # fmt: skip
    assert main(["audit", *arguments]) == 0
    (folder,) = (tmp_path / "results").iterdir()
    records = read_records(folder, pytest.fail)

    assert [record.status for record in records] == ["pass"] * 3
    clean = records[0].scores[0].clean
    assert clean.hits / clean.n > 0.95
    assert records[0].scores[0].backdoors[0].asr.hits > 0
    assert sorted(path.name for path in (folder / "n_plus_1").iterdir()) == [
        "bundle.json", "handed_over.safetensors", "model.onnx", "repaired.safetensors",
    ]  # fmt: skip
    pair = open_bundle(folder / "n_plus_1", Registry.discover())
    with h5py.File(given / "clean.h5") as file:
        answers = pair.predict(torch.from_numpy(file["data"][:]))
    agreed = answers < 10
    assert agreed.float().mean() > 0.5
    assert np.array_equal(answers[agreed].numpy(), np.load(given / "answers.npy")[agreed.numpy()])


def test_the_wrong_file_leaves_nothing(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.onnx").write_bytes((given / "net.onnx").read_bytes()[:-100])
    arguments = [
        f"--model={tmp_path / 'bad.onnx'}",
        f"--clean={given / 'clean.h5'}",
        f"--results={tmp_path / 'results'}",
    ]

    assert main(["audit", *arguments, f"--store={tmp_path / 'store'}"]) == 2
    captured = capsys.readouterr()
    assert "bad.onnx is no ONNX file, or a damaged one" in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "results").exists()
