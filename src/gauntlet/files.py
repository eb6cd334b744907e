"""The content of the user's files, as keys need it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from gauntlet.errors import DataError

__all__ = ["content"]


def content(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder; read once while it stays the same.

    DataError when it can't be read.
    """
    try:
        if not path.is_dir():
            return _digest(path.resolve(), *_state(path))
        state = hashlib.sha256()
        for file in sorted(item for item in path.rglob("*") if item.is_file()):
            state.update(f"{file.relative_to(path).as_posix()}\0{_digest(file.resolve(), *_state(file))}".encode())
        return state.hexdigest()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed: int) -> str:  # noqa: ARG001
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
