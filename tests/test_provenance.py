from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gauntlet
from gauntlet.provenance import commit, provenance
from gauntlet.registry import Registry
from tests.sample_scores import facts

REPORT = '''"""A report."""
from dataclasses import dataclass
from gauntlet.plugin import report
from gauntlet.report import Report


@report
@dataclass(frozen=True)
class Lines(Report):
    """Counts lines."""

    filename = "lines.txt"

    def render(self, records):
        return str(len(records))
'''


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one commit that looks like a clone and is taken for it."""
    engine = tmp_path / "src/gauntlet"
    for name in ("src/gauntlet/__init__.py", "attacks/known.py", "bench/quick.toml", ".gitignore"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("ignored.py\n" if name == ".gitignore" else "")
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    for arguments in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "First")):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
    monkeypatch.setattr(gauntlet, "__file__", str(engine / "__init__.py"))
    commit.cache_clear()
    yield tmp_path
    commit.cache_clear()


@pytest.mark.parametrize(
    ("file", "is_dirty"),
    [
        ("attacks/known.py", True),
        ("attacks/new.py", True),
        ("defenses/inner/new.py", True),
        ("models/ignored.py", True),
        ("src/gauntlet/maths/new.py", True),
        ("bench/mine.toml", True),
        ("attacks/notes.txt", False),
        ("bench/results.json", False),
        ("scratch.py", False),
        ("results/run/record.json", False),
    ],
)
def test_code_that_git_does_not_track_makes_a_clone_dirty(clone: Path, file: str, *, is_dirty: bool) -> None:
    assert len(commit()) == 12
    (clone / file).parent.mkdir(parents=True, exist_ok=True)
    (clone / file).write_text("VALUE = 1\n")
    commit.cache_clear()
    assert commit().endswith("-dirty") is is_dirty


def test_an_installed_copy_claims_no_commit(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauntlet, "__file__", str(clone / "lib/python/site-packages/gauntlet/__init__.py"))
    assert commit() == "release"


def test_plugin_files_are_named_as_they_were_loaded(tmp_path: Path) -> None:
    path = tmp_path / "lines_named.py"
    path.write_text(REPORT)
    Registry.discover([path])
    path.write_text(f"{REPORT}\nMORE = 1\n")
    files = Registry.discover([path]).files
    found = provenance(facts(), torch.device("cpu"), "2026-01-01T00:00:00+00:00", files).commit
    assert found == f"{commit()}, lines_named.py {hashlib.sha256(REPORT.encode()).hexdigest()[:12]}"
    assert not Registry.discover().files
