"""Where a result comes from: versions, commit, machine and data."""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

import gauntlet
from gauntlet.compute import describe_device
from gauntlet.facts import TaskFacts
from gauntlet.fingerprint import versions
from gauntlet.records import Provenance

__all__ = ["commit", "provenance"]


def _git(folder: Path, *arguments: str) -> str:
    program = shutil.which("git")
    if program is None:
        return ""
    command = [program, "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- fixed arguments
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def commit() -> str:
    """The commit of the clone that runs, `-dirty` behind it when files differ; `release` for an installed copy."""
    root = Path(gauntlet.__file__).resolve().parents[2]
    # A wheel inside somebody's repository must not claim that repository's commit.
    if not (root / "src" / "gauntlet").is_dir() or _git(root, "rev-parse", "--show-toplevel") != str(root):
        return "release"
    head = _git(root, "rev-parse", "--short=12", "HEAD") or "no commit"
    return f"{head}-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else head


def provenance(facts: TaskFacts, device: torch.device, started: str) -> Provenance:
    """The provenance of a result on the task. started: when the session began, ISO 8601 with its zone."""
    library = versions()
    return Provenance(
        gauntlet=gauntlet.__version__,
        commit=commit(),
        python=platform.python_version(),
        torch=library["torch"],
        numpy=library["numpy"],
        device=describe_device(device),
        threads=torch.get_num_threads(),
        task_hash=facts.hash,
        task_provenance=facts.provenance,
        started=started,
    )
