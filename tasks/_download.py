"""What the sources that torchvision can download have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from gauntlet.errors import DataError
from gauntlet.task import LoadContext

__all__ = ["fetch", "one_line"]


def fetch(what: str, folder: Path, context: LoadContext, download: Callable[[], object]) -> None:
    """Run `download`, which fills `folder`. DataError when downloads are forbidden, or this one fails."""
    remedy = (
        "lay the files out there as torchvision does, or name your own copy with --task parquet:PATH, folder:PATH or "
        "h5:PATH"
    )
    if context.offline:
        raise DataError(f"{what} is not in {folder} and downloads are off; {remedy}, or run once without --offline")
    try:
        with redirect_stdout(sys.stderr):
            download()
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        reason = one_line(error)
        raise DataError(f"{what} is not in {folder} and can't be downloaded ({reason}); {remedy}") from error


def one_line(error: Exception) -> str:
    """The error's message without line breaks, at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
