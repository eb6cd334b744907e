from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from gauntlet import __version__
from gauntlet.cli import main
from gauntlet.paths import default_data, default_store
from gauntlet.results import RECORDS, ResultsWriter
from gauntlet.store import Store
from tests.sample_records import sample

IN_A_CLONE = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
"""So that a subprocess finds what this process found without an installation."""


class Text:
    """Stores a string."""

    def save(self, value: str, folder: Path) -> None:
        (folder / "text").write_text(value)

    def load(self, folder: Path) -> str:
        return (folder / "text").read_text()


def silent(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    made = Store(root, silent)
    for kind, number in (("victim", 1), ("victim", 2), ("score", 3)):
        made.obtain(kind, f"{number:064x}", {"attack": f"badnets {number}"}, Text(), lambda: "x" * 2048)
    return root


def one_line(text: str) -> str:
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert "Traceback" not in text
    return text


# What goes wrong


def test_a_fault_of_ours_is_no_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """1 is the exit code for damage and for a suspicious model, and Python's own for an exception."""

    def fail(*_: object) -> str:
        raise RuntimeError("a fault")

    monkeypatch.setattr("gauntlet.recall.recalled", fail)
    assert main(["list"]) == 2
    assert capsys.readouterr().err.endswith("RuntimeError: a fault\n")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", os.fsdecode(os.fsencode(tmp_path / "run") + b"\xff")]) == 2
    assert one_line(capsys.readouterr().err).endswith("run\\udcff is no UTF-8; rename the file or folder\n")


# Help and usage


def test_help_is_instant_because_nothing_heavy_is_imported() -> None:
    code = "import sys; from gauntlet.cli import _parser; _parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=IN_A_CLONE)
    assert not {"torch", "pandas", "numpy", "rich", "pydantic", "jinja2"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["list"],
        ["plan"],
        ["report"],
        ["compare"],
        ["store"],
        ["store", "ls"],
        ["store", "verify"],
        ["store", "prune"],
    ],
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['gauntlet', *command])} ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"gauntlet {__version__}\n"


@pytest.mark.parametrize(
    "wrong",
    [[], ["lst"], ["list", "atacks"], ["report"], ["store"], ["store", "prune", "--older-than", "-1"], ["plan", "--x"]],
)
def test_wrong_usage_is_one_line_and_exit_code_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(wrong)
    assert exit_.value.code == 2
    assert "--help" in one_line(capsys.readouterr().err)


# list


def test_list_shows_all_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for word in ("attacks", "defenses", "models", "tasks", "suites", "reports", "badnets", "leaderboard.html"):
        assert word in out


def test_list_json_holds_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "attacks", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["attacks"]
    badnets = next(each for each in found["attacks"] if each["name"] == "badnets")
    assert badnets["family"] == "dirty_label"
    assert badnets["summary"]
    assert {"name": "target", "default": "0", "legal": "integer >= 0"} in badnets["settings"]


def test_list_settings_shows_defaults_and_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "defenses", "-v"]) == 0
    out = capsys.readouterr().out
    assert "spatial_smoothing  (stage: preprocessing, clean reserve: no)" in out
    assert "sentinet  (stage: input detector, clean reserve: from 4 images)" in out
    assert "apply_predict" in out
    assert "boolean" in out


def test_list_takes_a_plugin_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "line_count.py"
    plugin.write_text(
        '"""A report."""\n\nfrom dataclasses import dataclass\n\nfrom gauntlet.plugin import report\n'
        "from gauntlet.report import Report\n\n\n@report\n@dataclass(frozen=True)\nclass LineCount(Report):\n"
        '    """Counts lines."""\n\n    filename = "lines.txt"\n\n'
        "    def render(self, records):\n        return str(len(records))\n"
    )
    assert main(["list", "reports", "--plugin", str(plugin)]) == 0
    assert "line_count" in capsys.readouterr().out


def test_list_with_a_missing_plugin_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--plugin", str(tmp_path / "nothing.py")]) == 2
    assert "nothing.py" in one_line(capsys.readouterr().err)


# plan


def test_plan_prints_the_cases_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(
        'tasks = ["digits"]\nseeds = [0]\narchitectures = ["shallow_net"]\n'
        'attacks = ["badnets"]\ndefenses = ["fine_tuning"]\n'
    )
    root = tmp_path / "store"
    assert main(["plan", "--suite", str(suite), "--store", str(root)]) == 0
    out = capsys.readouterr().out
    assert "digits-shallow_net-badnets-none" in out
    assert "digits-shallow_net-badnets-fine_tuning" in out
    assert not (root / "victim").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "quik"], "quick"),
        (["--seeds", "none"], "--seeds"),
        (["--budget", "soon"], "duration"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_plan_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--store", str(tmp_path), *arguments]) == 2
    assert message in one_line(capsys.readouterr().err)


# report


def test_report_rebuilds_everything_and_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = ResultsWriter(tmp_path, silent)
    for each in sample():
        writer.append(each)
    assert main(["report", str(tmp_path)]) == 0
    names = {RECORDS, "leaderboard.csv", "leaderboard.md", "leaderboard.html", "per_class.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names
    captured = capsys.readouterr()
    assert "96.7 / 7.2" in captured.out
    assert captured.err == ""


def test_report_of_an_interrupted_run_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = ResultsWriter(tmp_path, silent)
    for each in sample()[:3]:
        writer.append(each)
    path = tmp_path / RECORDS
    path.write_bytes(path.read_bytes()[:-9])
    assert main(["report", str(tmp_path)]) == 0
    assert "cut short" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("content", [None, b"", b"nonsense\n"])
def test_report_of_no_run_is_a_user_error(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / RECORDS).write_bytes(content)
    assert main(["report", str(tmp_path)]) == 2
    assert "records.jsonl" in one_line(capsys.readouterr().err)


# store


def test_store_ls_lists_kinds_sizes_and_the_total(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "ls", "--store", str(store)]) == 0
    out = capsys.readouterr().out
    assert out.count("victim") == 2
    assert out.count("2.0 KiB") == 3
    assert "3 entries, 6.0 KiB" in out
    assert main(["store", "ls", "--store", str(store), "--kind", "score"]) == 0
    assert "1 entries" in capsys.readouterr().out


def test_store_without_that_kind_is_a_user_error(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "ls", "--store", str(store), "--kind", "vctim"]) == 2
    assert "score, victim" in one_line(capsys.readouterr().err)


def test_store_that_is_not_there_is_a_user_error_and_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", "ls", "--store", str(tmp_path / "none")]) == 2
    assert "no store" in one_line(capsys.readouterr().err)
    assert not (tmp_path / "none").exists()


def test_store_verify_finds_damage(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", "--store", str(store)]) == 0
    assert "3 entries whole, 0 damaged" in capsys.readouterr().out
    (next((store / "score").glob("*/*")) / "text").write_text("y" * 2048)
    assert main(["store", "verify", "--store", str(store)]) == 1
    out = capsys.readouterr().out
    assert "score/000000000000" in out
    assert "2 entries whole, 1 damaged" in out


def test_a_store_that_cannot_be_written_is_listed_and_checked(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tmp", "locks", "damaged"):
        shutil.rmtree(store / name)
        (store / name).write_text("in the way, whoever asks")
    given = ["--store", str(store)]
    assert main(["store", "ls", *given]) == 0
    assert main(["store", "prune", "--older-than", "0", "--dry-run", *given]) == 0
    assert main(["store", "verify", *given]) == 0
    assert "3 entries whole, 0 damaged" in capsys.readouterr().out
    (next((store / "score").glob("*/*")) / "text").write_text("y" * 2048)
    assert main(["store", "verify", *given]) == 1
    out = capsys.readouterr().out
    assert "text does not match its checksum; left there: the store can't be written" in out
    assert "2 entries whole, 1 damaged" in out
    assert main(["store", "prune", *given]) == 2
    assert "can't be written" in one_line(capsys.readouterr().err)


def test_store_prune_removes_what_a_dry_run_announces(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prune = ["store", "prune", "--store", str(store), "--kind", "victim", "--older-than", "0"]
    assert main([*prune, "--dry-run"]) == 0
    assert "would remove 2 entries, 4.0 KiB" in capsys.readouterr().out
    assert len(list(store.glob("victim/*/*"))) == 2
    assert main(prune) == 0
    assert "removed 2 entries, 4.0 KiB, and " in capsys.readouterr().out
    assert not list(store.glob("victim/*/*"))
    assert len(list(store.glob("score/*/*"))) == 1


def test_store_prune_tells_entries_from_leftovers(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "prune", "--store", str(store), "--kind", "score"]) == 0
    assert capsys.readouterr().out.startswith("removed 1 entries, 2.0 KiB, and 3 leftovers (")


@pytest.mark.parametrize("options", [[], ["--kind", "score"], ["--older-than", "0"]])
def test_a_dry_run_tells_the_leftovers_that_prune_removes(
    store: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (next((store / "score").glob("*/*")) / "text").write_text("y" * 2048)
    assert main(["store", "verify", "--store", str(store)]) == 1
    Store(store, silent).obtain("score", "4" * 64, {}, Text(), lambda: "x" * 2048)
    half = store / "tmp" / f"victim-{'5' * 64}-abc"
    half.mkdir()
    (half / "text").write_text("z" * 1024)
    shutil.rmtree(store / "locks")
    before = sorted(store.rglob("*"))
    capsys.readouterr()
    prune = ["store", "prune", "--store", str(store), *options]
    assert main([*prune, "--dry-run"]) == 0
    assert sorted(store.rglob("*")) == before
    announced = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"and 2 leftovers \(.*\), [3-9]\.\d KiB$", announced)
    assert main(prune) == 0
    assert capsys.readouterr().out == f"{announced.removeprefix('would ').replace('remove', 'removed', 1)}\n"
    assert not [path for name in ("tmp", "damaged", "locks") for path in (store / name).iterdir()]


def test_a_dry_run_leaves_out_what_is_in_use(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = next((store / "locks").glob("score-*"))
    with FileLock(lock):
        assert main(["store", "prune", "--store", str(store), "--kind", "score", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("would remove 0 entries, 0 B, and 2 leftovers (")


def test_store_prune_keeps_young_and_unnamed_entries(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "prune", "--store", str(store), "--older-than", "1"]) == 0
    assert main(["store", "prune", "--store", str(store)]) == 0
    assert main(["store", "prune", "--store", str(store), "--dry-run"]) == 0
    assert "would remove 0 entries" in capsys.readouterr().out
    assert len(list(store.glob("*/*/*/text"))) == 3


# Where things lie


def test_the_store_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GAUNTLET_STORE", str(tmp_path / "s"))
    monkeypatch.setenv("GAUNTLET_DATA", str(tmp_path / "d"))
    assert (default_store(), default_data()) == (tmp_path / "s", tmp_path / "d")
    monkeypatch.delenv("GAUNTLET_STORE")
    monkeypatch.delenv("GAUNTLET_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (default_store(), default_data()) == (tmp_path / "gauntlet", tmp_path / "gauntlet" / "data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert default_store() == tmp_path / ".cache" / "gauntlet"


def test_the_default_store_is_used(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_STORE", str(store))
    assert main(["store", "verify"]) == 0


def test_a_reader_that_has_gone_gets_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "gauntlet", "list", "reports"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=IN_A_CLONE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
