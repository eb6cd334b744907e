"""A whole audit of a real backdoored network, trained here on the digits, through the command."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import h5py
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from gauntlet.audit.bundle import open_bundle
from gauntlet.audit.report import headline
from gauntlet.audit.run import AuditResult
from gauntlet.cli import main
from gauntlet.mounting import mount
from gauntlet.pipeline import Context, tools_for
from gauntlet.records import Record, VerdictCounts
from gauntlet.registry import Registry
from gauntlet.results import read_records
from gauntlet.toolbox import state_of
from tests.sample_cases import CaseMaker
from tests.sample_records import record

DEFENSES = ("fine_pruning", "fine_tuning", "n_plus_1", "strip", "neural_cleanse")
QUICK = """
name = "small"
description = "A few defenses, briefly."
tasks = ["h5:CLEAN"]
seeds = [0]
reserve = 0
architectures = [{ name = "keras_model", path = "MODEL" }]
attacks = ["handed_over"]
defenses = [
    { name = "fine_pruning", rule = "contest", epochs = 30 },
    { name = "fine_tuning", epochs = 30 },
    { name = "n_plus_1", epochs = 30 },
    { name = "strip", blends = 20 },
    { name = "neural_cleanse", steps = 60, batch_size = 16, patience = 5 },
]
"""


@pytest.fixture(scope="session")
def files(context: Context, make_case: CaseMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors, clean.h5, poisoned.h5, trigger.png: a BadNet on the digits and what its auditor may hold."""
    folder = tmp_path_factory.mktemp("audited")
    case = make_case("badnets")
    tools = tools_for(case, 0, context)
    state = state_of(mount(case.attack, tools).value.network)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    test = tools.data.test.open()
    images = torch.cat([test.images(), tools.data.reserve_pool.images()])
    labels = torch.cat([test.labels, tools.data.reserve_pool.labels])
    _write(folder / "clean.h5", images, labels)
    triggered = images[labels != 0].clone()
    triggered[:, :, -3:, -3:] = 255
    _write(folder / "poisoned.h5", triggered, torch.zeros(len(triggered), dtype=torch.int64))
    Image.new("L", (3, 3), 255).save(folder / "trigger.png")
    (folder / "small.toml").write_text(QUICK, encoding="utf-8")
    return folder


def _write(path: Path, images: Tensor, labels: Tensor) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = images.float().numpy()
        file["label"] = labels.numpy()


@pytest.fixture(scope="session")
def audited(files: Path) -> tuple[Path, int]:
    """The results folder and the exit code of one audit with everything that may be given."""
    arguments = [
        "audit",
        f"--model={files / 'model.safetensors'}",
        "--network=simple_cnn",
        f"--clean={files / 'clean.h5'}",
        f"--poisoned={files / 'poisoned.h5'}",
        f"--trigger={files / 'trigger.png'}@25,25",
        f"--suite={files / 'small.toml'}",
        f"--store={files / 'store'}",
        f"--results={files / 'results'}",
        "--fail-if-suspicious",
    ]
    with redirect_stdout(StringIO()) as shown:
        code = main(arguments)
    (files / "shown.txt").write_text(shown.getvalue(), encoding="utf-8")
    (results,) = (files / "results").iterdir()
    return results, code


def test_the_report_says_what_was_found(audited: tuple[Path, int]) -> None:
    folder, code = audited
    text = (folder / "audit.md").read_text(encoding="utf-8")

    assert code == 1
    assert "trigger.png at column 25, row 25; target 0, found: " in text
    assert "| trigger" in text
    assert "neural_cleanse[steps=60,batch_size=16,patience=5] calls class 0 a target" in text
    assert "## Recovered triggers: neural_cleanse" in text
    assert (folder / "audit.html").read_text(encoding="utf-8").count("data:image/png;base64,") >= 1
    assert (folder / "anomaly.csv").read_text(encoding="utf-8").count("\n") == 11
    assert list(folder.glob("trigger_neural_cleanse*_0.png"))


def _verdict(max_index: float, suspects: tuple[int, ...]) -> Record:
    made = record(defense="neural_cleanse", asr=(), seeds=(0,), defense_settings={"max_index": max_index})
    verdict = VerdictCounts(anomaly=(0.0,) * 10, suspects=suspects, targets=())
    return made.model_copy(
        update={"scores": tuple(score.model_copy(update={"verdict": verdict}) for score in made.scores)}
    )


def test_the_terminal_shows_settings_too(audited: tuple[Path, int], files: Path) -> None:
    lines = (files / "shown.txt").read_text(encoding="utf-8").splitlines()

    assert any(line.startswith("neural_cleanse[steps=60,batch_size=16,patience=5] ") for line in lines)
    assert "neural_cleanse[steps=60,batch_size=16,patience=5] calls class 0 a target." in lines[-1]


def test_no_setting_of_a_verdict_hides_another() -> None:
    found = AuditResult((record(asr=()), _verdict(0.01, (3,)), _verdict(1000.0, ())))

    assert found.suspects == {"neural_cleanse[max_index=0.01]": (3,), "neural_cleanse[max_index=1000.0]": ()}
    assert "neural_cleanse[max_index=0.01] calls class 3 a target" in headline(found)


def test_the_records_are_ordinary_ones(audited: tuple[Path, int]) -> None:
    records = read_records(audited[0], pytest.fail)
    by_defense = {record.defense: record for record in records}
    undefended = records[0]

    assert [record.defense for record in records] == ["none", *DEFENSES]
    (score,) = undefended.scores
    assert score.clean.hits / score.clean.n > 0.95
    assert {backdoor.name for backdoor in score.backdoors} >= {"trigger"}
    assert all(backdoor.asr.hits / backdoor.asr.n > 0.95 for backdoor in score.backdoors)
    assert all(backdoor.untriggered.hits / backdoor.untriggered.n < 0.05 for backdoor in score.backdoors)
    detector = by_defense["n_plus_1"].scores[0].detector
    assert detector is not None
    assert detector.threshold == 0
    caught = detector.backdoors[0].flagged
    assert caught.hits / caught.n > 2 * detector.clean.hits / detector.clean.n
    verdict = by_defense["neural_cleanse"].scores[0].verdict
    assert verdict is not None
    assert verdict.targets == (0,)


def test_the_repair_is_a_bundle_that_predicts(
    audited: tuple[Path, int], files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, _ = audited
    with h5py.File(files / "clean.h5") as file:
        image, label = torch.from_numpy(file["data"][3, 0]).byte(), int(file["label"][3])
    clean, triggered = tmp_path / "clean.png", tmp_path / "triggered.png"
    Image.fromarray(image.numpy()).save(clean)
    stamped = image.clone()
    stamped[-3:, -3:] = 255
    Image.fromarray(stamped.numpy()).save(triggered)

    answers = {}
    for bundle in ("repaired", "n_plus_1"):
        for picture in (clean, triggered):
            assert main(["predict", str(folder / bundle), str(picture)]) == 0
            answers[bundle, picture] = int(capsys.readouterr().out)

    assert answers["repaired", clean] == answers["n_plus_1", clean] == label
    assert answers["n_plus_1", triggered] in (10, label) if label else True
    assert sorted(path.name for path in (folder / "n_plus_1").iterdir()) == [
        "bundle.json",
        "handed_over.safetensors",
        "repaired.safetensors",
    ]


def test_the_model_as_handed_over_is_in_the_pair(audited: tuple[Path, int], files: Path) -> None:
    before = load_file(files / "model.safetensors")
    after = load_file(audited[0] / "n_plus_1" / "handed_over.safetensors")
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    pair = open_bundle(audited[0] / "n_plus_1", Registry.discover())

    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    answers = pair.predict(images)
    assert ((answers == pair.classes) | (answers < 10)).all()


def test_eval_prints_an_accuracy(
    files: Path, audited: tuple[Path, int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAUNTLET_STORE", str(files / "store"))
    assert (
        main(
            [
                "eval",
                str(files / "poisoned.h5"),
                str(files / "model.safetensors"),
                "--network=simple_cnn",
                "--classes=10",
            ]
        )
        == 0
    )
    asr = float(capsys.readouterr().out.removeprefix("Classification accuracy: "))
    assert main(["eval", str(files / "clean.h5"), str(audited[0] / "repaired")]) == 0
    repaired = float(capsys.readouterr().out.removeprefix("Classification accuracy: "))

    assert asr > 95
    assert repaired > 85


def test_a_bundle_can_be_moved(audited: tuple[Path, int], tmp_path: Path) -> None:
    (audited[0] / "repaired").rename(tmp_path / "moved")
    try:
        assert open_bundle(tmp_path / "moved", Registry.discover()).classes == 10
    finally:
        (tmp_path / "moved").rename(audited[0] / "repaired")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: --model, --clean"),
        (("--model=nothing.h5", "--clean={clean}"), "nothing.h5: no such file"),
        (("--model={model}", "--clean={clean}"), "files named *.safetensors don't say what network they belong to"),
        (("--model={model}", "--network=simple_cn", "--clean={clean}"), "did you mean simple_cnn"),
        (
            ("--model={model}", "--network=simple_cnn", "--clean=nothing.h5"),
            "nothing.h5: no such file or folder",
        ),
        (("--model={model}", "--network=simple_cnn", "--clean={model}"), "no task reads files named *.safetensors"),
        (("--model={model}", "--network=le_net", "--clean={clean}"), "model.safetensors"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--classes=3"), "label"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--classes=12"), "model.safetensors"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--classes=-1"), "--classes -1: legal: from 1"),
        (("--model={clean}", "--clean={clean}"), "no model_config"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--trigger=x.png"), "legal: PICTURE@X,Y"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--trigger=x.png@1,2"), "x.png"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--trigger={trigger}@-1,2"), "counted from 0"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--trigger={trigger}@26,0:0"), "trigger.png"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--trigger={trigger}@0,0:10"), "10"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--poisoned={model}"), "model.safetensors"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--only=strop"), "did you mean strip"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--reserve=100000"), "--reserve 100000"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--min-clean-accuracy=90"), "is no share"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--suite=audot"), "did you mean audit"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--suite=quick"), "none trains a victim"),
        (("--model={model}", "--network=simple_cnn", "--clean={clean}", "--device=tpu"), "unknown device 'tpu'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...],
    message: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {name: str(files / file) for name, file in _FILES.items()}
    given = [argument.format(**places) for argument in arguments]
    try:
        code: object = main(["audit", *given, f"--store={tmp_path / 'store'}"])
    except SystemExit as wrong_usage:
        code = wrong_usage.code
    captured = capsys.readouterr()

    assert code == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "results").exists()


_FILES = {"model": "model.safetensors", "clean": "clean.h5", "poisoned": "poisoned.h5", "trigger": "trigger.png"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "simple_cn"}, "did you mean simple_cnn"),
        ({"gauntlet": 2}, "is no bundle's description"),
        ({"shape": [3, 28, 28]}, "these are not the weights of the model"),
        ({"class_names": ["one"]}, "is no bundle's description"),
        ({"networks": ["../repaired.safetensors"]}, "is no file of weights beside it"),
        ({"networks": ["gone.safetensors"]}, "gone.safetensors can't be read"),
        ({"settings": {"depth": 3}}, "unknown setting 'depth'"),
        ({"more": 1}, "is no bundle's description"),
    ],
)
def test_a_bundle_that_somebody_changed_is_refused(
    change: dict[str, object],
    message: str,
    audited: tuple[Path, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = audited[0] / "repaired"
    form = json.loads((source / "bundle.json").read_text(encoding="utf-8"))
    (tmp_path / "bundle.json").write_text(json.dumps(form | change), encoding="utf-8")
    (tmp_path / "repaired.safetensors").write_bytes((source / "repaired.safetensors").read_bytes())
    Image.new("L", (28, 28)).save(tmp_path / "image.png")

    assert main(["predict", str(tmp_path), str(tmp_path / "image.png")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_nan_weights_in_a_bundle_are_named(
    audited: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = audited[0] / "repaired"
    (tmp_path / "bundle.json").write_bytes((source / "bundle.json").read_bytes())
    state = load_file(source / "repaired.safetensors")
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name] = torch.full_like(state[name], float("nan"))
    save_file(state, tmp_path / "repaired.safetensors")

    assert main(["predict", str(tmp_path), "image.png"]) == 2
    assert f"the tensor {name} holds values that are not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: Image.new("L", (27, 28)).save(path),
            "is 28 high and 27 wide, the model takes 28 high and 28 wide",
        ),
        (lambda path: path.write_bytes(b"no image"), "can't be read as a PNG or JPEG"),
        (lambda path: Image.new("L", (28, 28)).save(path, "GIF"), "can't be read as a PNG or JPEG"),
        (lambda path: Image.new("I;16", (28, 28), 9000).save(path), "image.png: images of mode I;16 are not taken"),
        (lambda path: None, "no such file"),
    ],
    ids=["size", "no image", "gif", "16 bits", "absent"],
)
def test_a_wrong_image_is_named(
    make: object, message: str, audited: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(make)
    make(tmp_path / "image.png")

    assert main(["predict", str(audited[0] / "repaired"), str(tmp_path / "image.png")]) == 2
    assert message in capsys.readouterr().err


def test_an_image_is_resized_on_request(
    audited: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (60, 31), "grey").save(tmp_path / "image.jpg")

    assert main(["predict", "--resize", str(audited[0] / "repaired"), str(tmp_path / "image.jpg")]) == 0
    assert 0 <= int(capsys.readouterr().out) < 10
