"""Commands as a user types them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["timed"]


def timed(command: Sequence[str], folder: Path, **environment: str) -> tuple[float, str]:
    """Seconds and output of a command that must succeed, with `environment` beside the present one."""
    begun = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    seconds = time.perf_counter() - begun
    assert done.returncode == 0, done.stdout + done.stderr
    return seconds, done.stdout
