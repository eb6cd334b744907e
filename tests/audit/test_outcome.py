"""What an audit's exit code and its first sentence say, and what it refuses to say anything of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gauntlet.audit.bundle import open_bundle, open_file, save_bundle
from gauntlet.audit.report import headline
from gauntlet.audit.run import AuditResult
from gauntlet.cli import main
from gauntlet.facts import TaskFacts
from gauntlet.plugin import Kind
from gauntlet.records import Counts, Record, Status
from gauntlet.registry import Registry
from gauntlet.results import read_records
from tests.keras_files import SMALL, SMALL_WEIGHTS, write
from tests.sample_records import record

SUITE = """
name = "mine"
description = "A few defenses."
tasks = ["h5:CLEAN"]
seeds = [0]
reserve = 0
architectures = [{{ name = "keras_model", path = "MODEL" }}]
attacks = ["handed_over"]
defenses = ["none", {defenses}]
"""
REPAIR = '{ name = "fine_tuning", epochs = 1 }'
ODD = '''
from dataclasses import dataclass

from gauntlet.defense import Inspection, ModelVerdict
from gauntlet.plugin import defense
from gauntlet.views import DefenderView


@defense
@dataclass(frozen=True)
class Odd(ModelVerdict):
    """Comes to no verdict. Nobody 2020, arXiv:1805.12185."""

    def inspect(self, view: DefenderView) -> Inspection:
        raise {error}
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.h5, clean.h5, with the labels that the network gives, and wrong.h5, with others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAUNTLET_STORE", str(tmp_path / "store"))
    write(tmp_path / "net.h5", SMALL, SMALL_WEIGHTS)
    images = np.random.default_rng(0).integers(0, 256, (4000, 3, 8, 6)).astype(np.uint8)
    answers = open_file(tmp_path / "net.h5", "0..1", Registry.discover()).predict(torch.from_numpy(images)).numpy()
    # As many of each class, so that the most frequent one is far below the model's accuracy.
    size = np.bincount(answers, minlength=3).min()
    chosen = np.concatenate([np.flatnonzero(answers == label)[: min(size, 40)] for label in range(3)])
    assert size > 15
    data(tmp_path / "clean.h5", images[chosen], answers[chosen])
    data(tmp_path / "wrong.h5", images[chosen], np.random.default_rng(1).permutation(answers[chosen]))
    suite(tmp_path, REPAIR)
    return tmp_path


def data(path: Path, images: Any, labels: Any) -> None:
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = images, labels


def suite(here: Path, defenses: str) -> None:
    (here / "mine.toml").write_text(SUITE.format(defenses=defenses), encoding="utf-8")


def odd(here: Path, error: str) -> str:
    """An option that brings the verdict `odd`, which raises."""
    (here / "odd.py").write_text(ODD.replace("{error}", error), encoding="utf-8")
    return "--plugin=odd.py"


def audit(*arguments: str) -> int:
    return main(["audit", "--model=net.h5", "--suite=mine.toml", *arguments])


def report(here: Path) -> str:
    (folder,) = (here / "results").iterdir()
    return (folder / "audit.md").read_text(encoding="utf-8")


def test_a_sound_audit_ends_well(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("--clean=clean.h5", "--min-clean-accuracy=0") == 0
    captured = capsys.readouterr()

    # Settings stand in brackets, which are no markup.
    assert "fine_tuning[epochs=1.0] pass" in captured.out
    assert captured.err == ""
    assert "(HDF5 clean.h5 ([N, C, H, W], values 0..255); test set" in report(here)
    assert "It was exported" in report(here)


def test_a_broken_verdict_is_an_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite(here, f'{REPAIR}, "odd"')

    assert audit("--clean=clean.h5", "--fail-if-suspicious", odd(here, 'RuntimeError("no [bold]memory")')) == 2
    due = (
        "No model verdict came to an answer and no trigger was given: only the repairs and the false alarms were "
        "measured. Broke off: odd (RuntimeError: no [bold]memory)."
    )
    assert f"**{due}**" in report(here)
    assert capsys.readouterr().out.splitlines()[-1] == due


def test_an_interrupted_audit_reports_what_finished(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite(here, f'{REPAIR}, "odd", "spatial_smoothing"')

    assert audit("--clean=clean.h5", odd(here, "KeyboardInterrupt")) == 130
    assert capsys.readouterr().err == "gauntlet: interrupted; the same command goes on from the store\n"
    (folder,) = (here / "results").iterdir()
    found = [(each.defense, each.status, each.reason) for each in read_records(folder, pytest.fail)[2:]]
    assert found == [
        ("odd", "not-run", "interrupted"),
        ("spatial_smoothing", "not-run", "interrupted"),
    ]
    assert "Not run: odd, spatial_smoothing (interrupted)." in report(here)
    assert "Nothing was exported: the audit was interrupted." in report(here)


def test_a_model_that_guesses_is_no_finding(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("--clean=wrong.h5", "--min-clean-accuracy=0") == 0
    captured = capsys.readouterr()
    (folder,) = (here / "results").iterdir()

    assert captured.err.startswith("gauntlet: warning: The model as it was handed over is right on ")
    assert (
        "anything before the labels, their order, --input-range, and the images' layout and value_range" in captured.err
    )
    assert "\n\n**The model as it was handed over is right on " in report(here)
    assert "Nothing was exported: beside a model that may only be guessing" in report(here)
    assert not (folder / "repaired").exists()


@pytest.mark.parametrize(
    ("clean", "why"),
    [("wrong.h5", "the model may only be guessing"), ("clean.h5", "there was no answer of a model verdict")],
)
def test_a_gate_that_nobody_checked_is_not_passed(
    clean: str, why: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite(here, '{ name = "strip", blends = 2 }')
    assert audit(f"--clean={clean}", "--only=strip", "--fail-if-suspicious") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"gauntlet: --fail-if-suspicious: the gate was not checked: {why}")


def test_a_gate_that_a_trigger_checked_is_passed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (1, 1), "white").save("dot.png")

    assert audit("--clean=clean.h5", "--trigger=dot.png@0,0:1", "--fail-if-suspicious", "--only=none") == 0
    assert capsys.readouterr().err == ""


def test_a_maximum_just_above_1_is_doubted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File("clean.h5") as file:
        images, labels = file["data"][:] / 255, file["label"][:]
    images[3, 0, 0, 0] = 1.0001
    data(here / "bright.h5", images, labels)
    due = "gauntlet: warning: bright.h5: data holds values from 0 to 1.0001, which were taken as 0..255"

    for _ in range(2):  # the second time from the store
        assert main(["eval", "bright.h5", "net.h5"]) == 0
        assert capsys.readouterr().err.startswith(due)


@pytest.mark.parametrize("command", ["audit", "eval", "predict"])
def test_an_answer_that_is_no_number_is_refused(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = {"kernel": np.full((120, 3), 3e38, np.float32), "bias": np.zeros(3, np.float32)}
    write(here / "net.h5", SMALL, SMALL_WEIGHTS | {"dense": dense})
    Image.new("RGB", (6, 8), "white").save("image.png")
    given = {
        "audit": ["--model=net.h5", "--clean=clean.h5", "--suite=mine.toml"],
        "eval": ["clean.h5", "net.h5"],
        "predict": ["net.h5", "image.png"],
    }

    assert main([command, *given[command]]) == 2
    captured = capsys.readouterr()
    assert "the model answers infinity for " in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (here / "results").exists()


def bundled(here: Path, weight: float) -> None:
    """net.h5 as a bundle, with all weights of its last layer alike."""
    registry = Registry.discover()
    architecture = registry.build(Kind.MODEL, "keras_model", {"path": "net.h5"})
    network = open_file(here / "net.h5", "0..1", registry).networks[0]
    network.body.get_submodule("dense").get_parameter("weight").data.fill_(weight)
    facts = TaskFacts("bundle", (3, 8, 6), ("0", "1", "2"), (0,) * 3, (0,) * 3, (0,) * 3, "", "")
    save_bundle(here / "bundle", architecture, facts, (network,))


def test_weights_of_an_odd_type_in_a_bundle_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundled(here, 1)
    path = here / "bundle" / "repaired.safetensors"
    save_file(load_file(path) | {"body.dense.bias": torch.zeros(3).to(torch.float8_e4m3fn)}, path)

    assert main(["eval", "clean.h5", "bundle"]) == 2
    due = "the tensor body.dense.bias has the type torch.float8_e4m3fn; legal: plain real numbers"
    assert capsys.readouterr().err == f"gauntlet: {Path('bundle/repaired.safetensors')}: {due}\n"


@pytest.mark.parametrize("command", ["eval", "predict"])
@pytest.mark.parametrize("name", ["bundle.json", "repaired.safetensors", "model.json"])
def test_what_is_no_file_in_a_bundle_is_not_read(
    name: str, command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundled(here, 1)
    Image.new("RGB", (6, 8), "white").save("image.png")
    given = {"eval": ["clean.h5", "bundle"], "predict": ["bundle", "image.png"]}[command]
    path = here / "bundle" / name
    path.unlink()
    os.mkfifo(path)

    assert main([command, *given]) == 2
    assert path.name in (said := capsys.readouterr().err)
    assert "it is a named pipe; due: a file" in said
    path.unlink()
    path.symlink_to("/dev/zero")
    assert main([command, *given]) == 2
    assert "it is a device; due: a file" in capsys.readouterr().err


def test_a_bundle_is_held_to_that_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundled(here, 3e38)

    assert open_bundle(here / "bundle", Registry.discover()).classes == 3
    assert main(["eval", "clean.h5", "bundle"]) == 2
    assert "the model answers infinity for " in capsys.readouterr().err


def test_a_model_that_always_says_one_thing_has_no_trigger(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constant = {"kernel": np.zeros((120, 3), np.float32), "bias": np.array([1, 0, 0], np.float32)}
    write(here / "net.h5", SMALL, SMALL_WEIGHTS | {"dense": constant})
    Image.new("RGB", (1, 1), "white").save("dot.png")

    assert audit("--clean=clean.h5", "--trigger=dot.png@0,0", "--only=none") == 0
    assert "dot isn't shown to work: it succeeds on 100.0 [" in capsys.readouterr().out


def test_a_target_is_chosen_on_the_defenders_images(here: Path) -> None:
    """The evaluator's images are all black here, so that they all go to one class."""
    data(here / "test.h5", np.zeros((30, 3, 8, 6), np.uint8), np.arange(30) % 3)
    Image.new("RGB", (6, 4), "white").save("half.png")
    with h5py.File("clean.h5") as file:
        images = torch.from_numpy(file["data"][:])
    bundle = open_file(here / "net.h5", "0..1", Registry.discover())
    before = bundle.predict(images)
    images[:, :, :4] = 255
    after = bundle.predict(images)
    target = int(torch.bincount(after[after != before], minlength=3).argmax())
    share = 100 * float((after == target).float().mean())

    assert audit("--clean=clean.h5", "--test=test.h5", "--trigger=half.png@0,0", "--only=none") == 0
    assert f"target {target}, found: {share:.1f} % of the defender's images go there with it" in report(here)
    assert 0 < share < 100


@pytest.mark.parametrize("clean", ["clean.h5", "h5:clean.h5"])
def test_the_evaluators_file_is_another_one(clean: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "alias.h5").symlink_to("clean.h5")

    assert audit(f"--clean={clean}", "--test=alias.h5", "--only=none") == 2
    assert capsys.readouterr().err.startswith("gauntlet: --test alias.h5 is what --clean names, so that ")
    assert not (here / "results").exists()


def test_the_evaluators_images_that_the_defender_has_are_counted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File("clean.h5") as file:
        images, labels = file["data"][:], file["label"][:]
    data(here / "others.h5", images[7:], labels[7:])
    data(here / "first.h5", images[:10], labels[:10])
    due = "gauntlet: warning: first.h5: 3 of 10 images stand in others.h5 as well, so that "

    assert audit("--clean=others.h5", "--test=first.h5", "--only=none", "--min-clean-accuracy=0") == 0
    assert due in capsys.readouterr().err
    data(here / "first.h5", images[:7], labels[:7])
    assert audit("--clean=others.h5", "--test=first.h5", "--only=none", "--min-clean-accuracy=0") == 0
    assert "as well" not in capsys.readouterr().err


def triggered(asr: tuple[int, int], untriggered: tuple[int, int]) -> AuditResult:
    """An undefended model, measured twice, whose trigger succeeds on so many of so many images, and without it."""
    made = record(seeds=(0, 1))
    counts = {"asr": Counts(hits=asr[0], n=asr[1]), "untriggered": Counts(hits=untriggered[0], n=untriggered[1])}
    scores = [
        score.model_copy(update={"backdoors": (score.backdoors[0].model_copy(update=counts),)}) for score in made.scores
    ]
    return AuditResult((made.model_copy(update={"scores": tuple(scores)}),))


@pytest.mark.parametrize(
    ("asr", "untriggered", "works"),
    [
        ((95, 100), (3, 100), True),
        ((100, 100), (100, 100), False),
        ((52, 100), (3, 100), False),  # half of the images lie within its interval
        ((2, 2), (0, 2), False),
        ((95, 100), (85, 100), False),  # the two intervals meet
        ((95, 100), (0, 0), True),  # nothing to compare with
        ((0, 0), (0, 0), False),
    ],
)
def test_a_trigger_works_beyond_what_its_intervals_leave_open(
    asr: tuple[int, int], untriggered: tuple[int, int], works: bool
) -> None:
    found = triggered(asr, untriggered)

    assert bool(found.works) is works
    assert ("trigger works: it succeeds on" in headline(found)) is works
    assert f" % of {asr[1]} images (without it " in headline(found)
    assert ("That is no proof" in headline(found)) is not works


def test_a_model_that_could_not_be_run_is_an_error() -> None:
    first: Record = record(clean=None, status=Status.ERROR, reason="no room")
    found = AuditResult((first, record(defense="strip", clean=None, status=Status.NOT_RUN, reason="no room")))

    assert headline(found) == "The model could not be run: no room"
    assert len(found.broken) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clean=pipe.h5",), "pipe.h5: it is a named pipe; due: a file or a folder"),
        (("--clean=h5:pipe.h5",), "pipe.h5: it is a named pipe; due: a file or a folder"),
        (("--clean=clean.h5", "--test=pipe.h5"), "pipe.h5: it is a named pipe; due: a file or a folder"),
        (("--clean=clean.h5", "--poisoned=pipe.h5"), "pipe.h5: it is a named pipe; due: a file"),
        (("--clean=clean.h5", "--trigger=pipe.h5@0,0:1"), "pipe.h5: it is a named pipe; due: a file"),
        (("--clean=clean.h5", "--model=pipe.h5"), "pipe.h5: it is a named pipe; due: a file"),
        (("--clean=clean.h5", "--model=."), ".: it is a folder; due: a file"),
        (("--clean=clean.h5", "--model=/dev/null"), "/dev/null: it is a device; due: a file"),
        (("--clean=/dev/null",), "/dev/null: it is a device; due: a file or a folder"),
        (("--clean=loop.h5",), "loop.h5: the link leads back to itself; due: a file or a folder"),
        (("--clean=clean.h5", "--model=gone.h5"), "gone.h5: the link leads to nothing.h5, which is not there"),
        (("--clean=" + os.fsdecode(b"c\xff.h5"),), r"--clean=c\udcff.h5 is no UTF-8; rename the file or folder"),
    ],
)
def test_what_is_no_file_is_said_to_be_what_it_is(
    arguments: tuple[str, ...], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe.h5")
    Path("loop.h5").symlink_to("loop.h5")
    Path("gone.h5").symlink_to("nothing.h5")

    assert audit(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"gauntlet: {message}\n"
    assert not (here / "results").exists()


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("audit", "--model=net.h5", "--clean=clean.h5"), "--reserve"),
        (("audit", "--model=net.h5", "--clean=clean.h5"), "--classes"),
        (("eval", "clean.h5", "net.h5"), "--classes"),
    ],
)
def test_numbers_are_counted_from_1(
    arguments: tuple[str, ...], flag: str, number: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, f"{flag}={number}"]) == 2
    assert capsys.readouterr().err == f"gauntlet: {flag} {number}: legal: from 1\n"
    assert not (here / "results").exists()


def test_a_picture_to_predict_is_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(here / "pipe.png")

    assert main(["predict", "net.h5", "pipe.png"]) == 2
    assert "pipe.png: it is a named pipe; due: a file" in capsys.readouterr().err
