"""Where a result comes from: versions, commit, machine and data."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

import gauntlet
from gauntlet.compute import describe_device
from gauntlet.facts import TaskFacts
from gauntlet.fingerprint import versions
from gauntlet.plugin import Kind
from gauntlet.records import Provenance

__all__ = ["commit", "provenance"]

_CODE = (":(glob)src/**/*.py", *(f":(glob){kind}/**/*.py" for kind in Kind), ":(glob)bench/*.py", ":(glob)bench/*.toml")
"""The files of a clone that make its numbers, as git selects them."""


def _git(folder: Path, *arguments: str) -> str:
    program = shutil.which("git")
    if program is None:
        return ""
    command = [program, "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- fixed arguments
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def commit() -> str:
    """The commit of the clone that runs; `release` for an installed copy.

    `-dirty` stands behind it when tracked files differ, and when code or a suite is there that git doesn't track.
    """
    root = Path(gauntlet.__file__).resolve().parents[2]
    # A wheel inside somebody's repository must not claim that repository's commit.
    if not (root / "src" / "gauntlet").is_dir() or _git(root, "rev-parse", "--show-toplevel") != str(root):
        return "release"
    head = _git(root, "rev-parse", "--short=12", "HEAD") or "no commit"
    # Ignored ones too: what is there is found and runs.
    untracked = ("ls-files", "--others", "--", *_CODE)
    is_dirty = _git(root, "status", "--porcelain", "--untracked-files=no") or _git(root, *untracked)
    return f"{head}-dirty" if is_dirty else head


def provenance(
    facts: TaskFacts, device: torch.device, started: str, files: Sequence[tuple[str, str]] = ()
) -> Provenance:
    """The provenance of a result on the task. started: when the session began, ISO 8601 with its zone.

    files: name and SHA-256 of each file of code beside the project's; they stand behind the commit.
    """
    library = versions()
    return Provenance(
        gauntlet=gauntlet.__version__,
        commit=", ".join([commit(), *(f"{name} {digest[:12]}" for name, digest in files)]),
        python=platform.python_version(),
        torch=library["torch"],
        numpy=library["numpy"],
        device=describe_device(device),
        threads=torch.get_num_threads(),
        task_hash=facts.hash,
        task_provenance=facts.provenance,
        started=started,
    )
