"""One entry of the store as it lies on disk: payload files beside an `entry.json` that can prove them whole."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from pydantic import AwareDatetime, BaseModel, ConfigDict

from gauntlet.errors import GauntletError
from gauntlet.keys import canonical

__all__ = ["MANIFEST", "DamagedError", "Manifest", "Payload", "payload_of", "read", "summary", "verify", "write"]

MANIFEST = "entry.json"
_HASH = re.compile("[0-9a-f]{64}")
_PIECE = 1 << 19
"""Bytes read at once: hashing is faster from the cache, and fewer system calls are faster too."""


class DamagedError(Exception):
    """An entry that can't be trusted; the message is the reason. The store sets it aside: no user sees this."""


class Payload(BaseModel):
    """Size (bytes) and xxh3_128 checksum (hex) of one payload file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    checksum: str


class Manifest(BaseModel):
    """What `entry.json` says. files: path below the entry's folder, with slashes -> its payload.

    seconds, peak_memory (bytes) and device: the cost as measured when the value was made. versions: of the libraries
    that made it. machine, threads: where. inner: `kind/key` of what was obtained meanwhile -> the seconds of that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    key: str
    spec: dict[str, Any]
    files: dict[str, Payload]
    created: AwareDatetime
    seconds: float
    peak_memory: int
    device: str
    versions: dict[str, str]
    machine: str = ""
    threads: int = 0
    inner: dict[str, float] = {}

    @property
    def own_seconds(self) -> float:
        """The seconds without those of what was obtained meanwhile."""
        return max(0.0, self.seconds - sum(self.inner.values()))

    @property
    def size(self) -> int:
        """Bytes of all payload files."""
        return sum(payload.size for payload in self.files.values())


def payload_of(folder: Path) -> dict[str, Payload]:
    """Sizes and checksums of all files below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): Payload(size=path.stat().st_size, checksum=_checksum(path))
        for path in files
    }


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, with its own checksum, into the entry's folder."""
    content = manifest.model_dump(mode="json")
    document = {"entry": content, "checksum": _seal(content)}
    (folder / MANIFEST).write_text(json.dumps(document, indent=1), encoding="utf-8")


def read(folder: Path, kind: str, key: str) -> Manifest:
    """The manifest of the entry in `folder`; DamagedError when it is absent, mangled or another entry's."""
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        content, checksum = document["entry"], document["checksum"]
        whole = checksum == _seal(content)
        manifest = Manifest.model_validate(content) if whole else None
    except OSError as error:
        raise DamagedError(f"{MANIFEST}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, RecursionError, GauntletError) as error:
        raise DamagedError(f"{MANIFEST} is mangled") from error
    if manifest is None:
        raise DamagedError(f"{MANIFEST} does not match its checksum")
    if (manifest.kind, manifest.key) != (kind, key):
        raise DamagedError(f"{MANIFEST} belongs to another entry, {manifest.kind}/{manifest.key}")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Check every payload file: there, of its size, of its checksum; DamagedError names the first that is not."""
    for name, payload in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != payload.size:
                raise DamagedError(f"{name} has {size:,} bytes instead of {payload.size:,}")
            if _checksum(path) != payload.checksum:
                raise DamagedError(f"{name} does not match its checksum")
        except OSError as error:
            raise DamagedError(f"{name}: {error.strerror or error}") from error


def summary(spec: Mapping[str, Any], width: int = 100) -> str:
    """The names and plain values of a spec, shortened."""
    named = {
        name: value["name"] if isinstance(value, dict) and "name" in value else value for name, value in spec.items()
    }
    plain = ", ".join(
        f"{name}={value}"
        for name, value in named.items()
        if isinstance(value, str | int | float) and not _HASH.fullmatch(str(value))
    )
    return plain if len(plain) <= width else f"{plain[: width - 1]}…"


def _checksum(path: Path) -> str:
    """Read, not mapped: a disk that fails under a mapping kills the process, under a read it raises OSError."""
    state, piece = xxhash.xxh3_128(), memoryview(bytearray(min(_PIECE, max(1, path.stat().st_size))))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(piece):
            state.update(piece[:size])
    return state.hexdigest()


def _seal(content: Any) -> str:
    return xxhash.xxh3_128(canonical(content).encode()).hexdigest()
