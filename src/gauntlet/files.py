"""The user's files: what stands at a path, and their content, as keys need it."""

from __future__ import annotations

import errno
import hashlib
import stat
from functools import lru_cache
from pathlib import Path

from gauntlet.errors import DataError

__all__ = ["content", "fault", "is_utf8"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_utf8(name: str) -> bool:
    """Whether a file's name can stand in a report: a system may take any bytes for a name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def fault(path: Path, *, folder: bool = False) -> str:
    """Why there is nothing to read at `path`, in a few words; '' for a regular file, and for a folder where `folder`
    allows one. Nothing is opened: opening a named pipe waits for whoever writes into it.
    """
    due = "a file or a folder" if folder else "a file"
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return _absence(path, error, due)
    allowed = kind == stat.S_IFREG or (folder and kind == stat.S_IFDIR)
    return "" if allowed else f"it is {_KINDS.get(kind, 'no regular file')}; due: {due}"


def _absence(path: Path, error: OSError | ValueError, due: str) -> str:
    number = error.errno if isinstance(error, OSError) else errno.ENOENT
    if number == errno.ELOOP:
        return f"the link leads back to itself; due: {due}"
    if number not in (errno.ENOENT, errno.ENOTDIR):
        return f"it can't be looked at: {error.strerror if isinstance(error, OSError) else error}"
    if isinstance(error, OSError) and path.is_symlink():
        return f"the link leads to {path.readlink()}, which is not there"
    return f"no such {due}".replace(" a ", " ")


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
