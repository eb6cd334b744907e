"""The store's folders, its locks, and the moves that make an entry appear or vanish in one step.

root/<kind>/<key[:2]>/<key>/   payload files and entry.json (see `gauntlet.entry`)
root/tmp/                      entries that are being written or removed
root/locks/                    one lock a key, so that many workers make a value once
root/damaged/                  entries that failed their check, set aside
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gauntlet.errors import StoreError

__all__ = ["Busy", "Shelves"]

Busy = Timeout
"""Another process holds the key's lock, and the caller did not want to wait."""

_KEY = re.compile(r"[0-9a-f]{64}")
_KIND = re.compile(r"[a-z_]+")
_OWNED = re.compile(r"([a-z_]+)-([0-9a-f]{64})[-.].*")
_TMP, _LOCKS, _DAMAGED = "tmp", "locks", "damaged"


class Shelves:
    """The folders below `root`, which are made; StoreError when they can't be written to.

    read_only: nothing is made, and that they can be read is enough; no folder at all is an empty store.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self.root = root
        if read_only:
            self._check_readable()
        else:
            self._make_writable()

    def _make_writable(self) -> None:
        try:
            for name in (_TMP, _LOCKS, _DAMAGED):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / _TMP):
                pass
        except OSError as error:
            why = error.strerror or error
            raise StoreError(
                f"the store {self.root} can't be written: {why}; make it writable, or choose another"
            ) from error

    def _check_readable(self) -> None:
        try:
            with suppress(FileNotFoundError):
                next(self.root.iterdir(), None)
        except OSError as error:
            raise StoreError(
                f"the store {self.root} can't be read: {error.strerror or error}; choose another"
            ) from error

    def folder(self, kind: str, key: str) -> Path:
        """Where the entry lies or will lie. ValueError for a malformed kind or key."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"the key {key!r} is not 64 hex characters")
        if not _KIND.fullmatch(kind) or kind in (_TMP, _LOCKS, _DAMAGED):
            raise ValueError(f"the kind {kind!r} is not [a-z_]+, or one of the store's own folders")
        return self.root / kind / key[:2] / key

    def entries(self) -> Iterator[tuple[str, str, Path]]:
        """Kind, key and folder of everything that lies where an entry would."""
        if not self.root.is_dir():
            return
        for kind in sorted(path.name for path in self.root.iterdir() if _KIND.fullmatch(path.name)):
            if kind in (_TMP, _LOCKS, _DAMAGED):
                continue
            for folder in sorted((self.root / kind).glob("??/*")):
                if _KEY.fullmatch(folder.name) and folder.parent.name == folder.name[:2]:
                    yield kind, folder.name, folder

    @contextmanager
    def locked(self, kind: str, key: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the key's lock; the system frees it when the process dies. Raises Busy when not to wait.

        Keys contain their inputs' keys, so that steps that wait for each other in a circle can't arise.
        """
        path = self._lock(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path, timeout=-1 if wait else 0):
            yield

    @contextmanager
    def draft(self, kind: str, key: str) -> Iterator[Path]:
        """An empty folder to write an entry in; what is still in it at the end goes."""
        (self.root / _TMP).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.root / _TMP, prefix=f"{kind}-{key}-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, draft: Path, kind: str, key: str) -> None:
        """Make the draft the entry, in one rename; an older entry goes first."""
        folder = self.folder(kind, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            self.discard(kind, key)
        draft.rename(folder)

    def discard(self, kind: str, key: str) -> None:
        """Remove an entry: it vanishes in one rename, so that a kill leaves no half of it."""
        with self.draft(kind, key) as trash:
            self.folder(kind, key).rename(trash / "entry")

    def set_aside(self, kind: str, key: str) -> Path:
        """Move an entry that can't be trusted to the damaged ones; where it is now."""
        (self.root / _DAMAGED).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.root / _DAMAGED, prefix=f"{kind}-{key}-"))
        self.folder(kind, key).rename(folder / "entry")
        return folder

    @contextmanager
    def claimed(self, kind: str, key: str, *, dry_run: bool = False) -> Iterator[None]:
        """Hold the key's lock to remove what is the key's. Raises Busy where another process holds it.

        dry_run: no lock is made, since only looking must leave the store as it is.
        """
        with ExitStack() as held:
            if not dry_run:
                held.enter_context(self.locked(kind, key, wait=False))
            elif self._lock(kind, key).is_file():
                try:
                    held.enter_context(self.locked(kind, key, wait=False))
                except Busy:
                    raise
                except OSError:
                    # Where locks can't be written nobody works.
                    pass
            yield

    def leftovers(self) -> Iterator[tuple[str, Path, str, str]]:
        """Name, path, kind and key of the unfinished drafts, the damaged entries and then the locks."""
        for folder in (_TMP, _DAMAGED, _LOCKS):
            for path in self._below(folder):
                if owner := _OWNED.fullmatch(path.name):
                    yield path.relative_to(self.root).as_posix(), path, owner[1], owner[2]

    def sweep(self, *, dry_run: bool = False) -> Iterator[tuple[str, int]]:
        """Remove the leftovers, or with dry_run only find them; name and bytes of each. What is in use stays."""
        for name, path, kind, key in self.leftovers():
            with suppress(Busy, FileNotFoundError), self.claimed(kind, key, dry_run=dry_run):
                bytes_ = size_of(path)
                if not dry_run:
                    _remove(path)
                yield name, bytes_

    def _lock(self, kind: str, key: str) -> Path:
        return self.root / _LOCKS / f"{kind}-{key}.lock"

    def _below(self, name: str) -> list[Path]:
        folder = self.root / name
        return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.lstat().st_size for file in files if not file.is_dir())
