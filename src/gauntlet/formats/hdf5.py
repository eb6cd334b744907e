"""HDF5 files of unknown origin, read as arrays and nothing else."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gauntlet.errors import DataError
from gauntlet.files import fault

__all__ = ["DATA_LIMIT", "WEIGHTS_LIMIT", "Form", "Hdf5", "opened"]

DATA_LIMIT = 1 << 33
"""Bytes that one array of images may have."""
WEIGHTS_LIMIT = 1 << 31
"""Bytes that one array of weights may have."""

_DEPTH = 32
_OBJECTS = 100_000
_TEXT_LIMIT = 1 << 26
_KINDS = "biuf"
# Deflate can't do better than about 1030 to 1: what claims more was made to fill the memory.
_PACKING = 1100
_SMALL = 1 << 26


@dataclass(frozen=True)
class Form:
    """What an array says of itself before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


class Hdf5:
    """An open file. Only datasets of numbers behind hard links exist here; everything else is refused by name."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self._file = file
        self._datasets = dict(self._walk())

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of all arrays, sorted."""
        return tuple(sorted(self._datasets))

    def form(self, name: str) -> Form:
        """Shape and type of an array; DataError, with the names that there are, when it is absent."""
        dataset = self._dataset(name)
        return Form(tuple(int(side) for side in dataset.shape), dataset.dtype)

    def array(self, name: str, limit: int, part: slice | None = None) -> npt.NDArray[Any]:
        """A whole array, or rows of it. DataError, before anything is allocated, when it has above `limit` bytes."""
        self.check(name, limit)
        dataset = self._dataset(name)
        read: npt.NDArray[Any] = np.asarray(dataset[() if part is None else part])
        return read

    def check(self, name: str, limit: int) -> None:
        """Raise DataError when an array has more than `limit` bytes, or claims more than the file can hold."""
        dataset, form = self._dataset(name), self.form(name)
        chunk = math.prod(dataset.chunks or ()) * form.dtype.itemsize
        if max(form.bytes, chunk) > limit:
            raise DataError(
                f"{self.path}: {name} is declared as {list(form.shape)} of {form.dtype}, {max(form.bytes, chunk):,} "
                f"bytes; legal: at most {limit:,}"
            )
        stored = int(dataset.id.get_storage_size())
        if (form.bytes and not stored) or (form.bytes > _SMALL and form.bytes > stored * _PACKING):
            raise DataError(
                f"{self.path}: {name} is declared as {list(form.shape)} of {form.dtype}, but the file holds "
                f"{stored:,} bytes of it"
            )

    def text(self, name: str) -> str | None:
        """A text attribute of the file itself; None where it is absent."""
        if name not in self._file.attrs:
            return None
        value = self._file.attrs[name]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if not isinstance(value, str) or len(value) > _TEXT_LIMIT:
            raise DataError(f"{self.path}: the attribute {name} is no text of at most {_TEXT_LIMIT:,} characters")
        return value

    def _dataset(self, name: str) -> Any:
        if name not in self._datasets:
            known = ", ".join(self.names[:12]) + (", ..." if len(self._datasets) > 12 else "")
            raise DataError(f"{self.path} has no array {name!r}; it has: {known or 'none'}")
        return self._datasets[name]

    def _walk(self) -> Iterator[tuple[str, Any]]:
        h5py = _library()
        seen: set[Any] = set()
        groups: list[tuple[str, Any, int]] = [("", self._file, 0)]
        while groups:
            prefix, group, depth = groups.pop()
            for key in group:
                name = f"{prefix}{key}"
                if type(link := group.get(key, getlink=True)) is not h5py.HardLink:
                    raise DataError(
                        f"{self.path}: {name} is a link ({type(link).__name__}); only plain arrays are taken"
                    )
                found = group[key]
                token = h5py.h5o.get_info(found.id).addr
                if token in seen or depth >= _DEPTH or len(seen) >= _OBJECTS:
                    raise DataError(f"{self.path}: {name}: its groups hold each other, or too many of them")
                seen.add(token)
                if isinstance(found, h5py.Dataset):
                    self._refuse_odd(name, found)
                    yield name, found
                elif isinstance(found, h5py.Group):
                    groups.append((f"{name}/", found, depth + 1))

    def _refuse_odd(self, name: str, dataset: Any) -> None:
        if dataset.is_virtual or dataset.external:
            raise DataError(f"{self.path}: {name} keeps its values in other files; only plain arrays are taken")
        if dataset.shape is None or dataset.dtype.kind not in _KINDS or dataset.dtype.itemsize > 8:
            raise DataError(f"{self.path}: {name} has the type {dataset.dtype}; legal: whole and real numbers")


@contextmanager
def opened(path: Path) -> Iterator[Hdf5]:
    """The file, open for reading. DataError names the file and the cause when it is absent, damaged or no HDF5 file."""
    h5py = _library()
    if path.exists() and (why := fault(path)):
        raise DataError(f"{path}: {why}")
    try:
        with path.open("rb") as raw:
            start = raw.read(8)
        if not h5py.is_hdf5(path):
            what = "a truncated or damaged HDF5 file" if start == b"\x89HDF\r\n\x1a\n" else "no HDF5 file"
            raise DataError(f"{path} is {what}")
        with h5py.File(path, "r", locking=False) as file:
            yield Hdf5(path, file)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or _first(error)}") from error
    # h5py tells of damage by whatever its C library's error is mapped to.
    except (RuntimeError, KeyError, TypeError, ValueError, OverflowError, UnicodeError) as error:
        raise DataError(f"{path} can't be read as HDF5: {_first(error)}") from error


def _first(error: Exception) -> str:
    lines = str(error).strip().strip("'\"").splitlines() or [type(error).__name__]
    return lines[0]


def _library() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError:
        raise DataError("reading HDF5 files needs h5py: pip install h5py") from None
