"""Files of pretrained weights: found on disk, downloaded, checked, read; never unpickled."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from urllib.request import urlopen

import torch
from safetensors.torch import load_file
from torch import Tensor

from gauntlet.errors import DataError

__all__ = ["OFFLINE", "Published", "find", "forbid_downloads", "read", "sha256"]

OFFLINE = "GAUNTLET_OFFLINE"
"""The environment variable that, set and not empty, forbids every download of weights."""

PATIENCE = 3.0
"""Seconds that a server may keep us waiting, at first and between two pieces."""
LIMIT = 900.0
"""Seconds that a whole download may take."""
PIECE = 1 << 20

_log = logging.getLogger(__name__)


@dataclass
class _Wish:
    """What the session that was opened last asks for: architectures look for weights on their own, and know none."""

    offline: bool = False


_wish = _Wish()


def forbid_downloads(forbidden: bool) -> None:
    """Whether `find` may download nothing from now on, in this process; what the variable OFFLINE says stands."""
    _wish.offline = forbidden


@dataclass(frozen=True)
class Published:
    """A published file of weights. Its name ends, before the suffix, in the first digits of its SHA-256."""

    url: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]

    @property
    def digest(self) -> str:
        """The first hexadecimal digits of the file's SHA-256."""
        return self.name.rpartition(".")[0].rpartition("-")[2]


def find(published: Published) -> Path | None:
    """The file in torch's hub folder, downloaded when it isn't there; None, within seconds, when that fails.

    A failed download is not tried again in this process. Raises DataError for a damaged file.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / published.name
    if not path.is_file() and (_wish.offline or os.environ.get(OFFLINE) or not _downloaded(published, path)):
        return None
    if not sha256(path).startswith(published.digest):
        raise DataError(f"{path} is damaged (its SHA-256 does not begin with {published.digest}): delete it")
    return path


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits; computed once per version of the file."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state_dict that torch.save wrote, on the CPU.

    Raises DataError when the file is damaged or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the two libraries raise a dozen types for a damaged file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} can't be read as a file of weights: {reason[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path} is no state_dict: give a file that maps parameter names to tensors")
    return state


@cache
def _sha256(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _downloaded(published: Published, target: Path) -> bool:
    """Whether the file could be downloaded to `target`, whole and with the right checksum."""
    response = _answer(published.url)
    if response is None:
        _log.info("no answer from %s", published.url)
        return False
    try:
        with response:
            target.parent.mkdir(parents=True, exist_ok=True)
            _receive(response, target, published.digest)
    except (OSError, HTTPException) as error:
        _log.info("download of %s failed: %s", published.url, error)
        return False
    return True


def _answer(url: str) -> HTTPResponse | None:
    """The server's answer, or None. A thread asks, because a name lookup can hang longer than any timeout."""
    answers: Queue[HTTPResponse | None] = Queue()

    def ask() -> None:
        try:
            answers.put(urlopen(url, timeout=PATIENCE))  # noqa: S310 -- the address is a constant of a plug-in
        except (OSError, HTTPException):
            answers.put(None)

    Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=PATIENCE)
    except Empty:
        return None


def _receive(response: HTTPResponse, target: Path, digest: str) -> None:
    """Write the response beside `target`, check it, and move it there; OSError when it is incomplete or wrong."""
    end = time.monotonic() + LIMIT
    state = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            while piece := response.read(PIECE):
                if time.monotonic() > end:
                    raise TimeoutError(f"not finished within {LIMIT:g} s")
                state.update(piece)
                file.write(piece)
        if not state.hexdigest().startswith(digest):
            raise OSError(f"the SHA-256 of what came does not begin with {digest}")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
