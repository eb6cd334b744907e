"""The store: what a step made, found again under the key of everything that it depends on."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch

from gauntlet import entry
from gauntlet.entry import DamagedError, Manifest
from gauntlet.errors import GauntletError
from gauntlet.fingerprint import versions
from gauntlet.keys import canonical
from gauntlet.making import making
from gauntlet.measure import Measurement, machine, measured, noted, obtained_inside
from gauntlet.shelves import Busy, Shelves

__all__ = ["Codec", "Damage", "Listed", "Obtained", "Pruned", "Store"]

T = TypeVar("T")


class Codec(Protocol[T]):
    """How a value becomes files and comes back. `gauntlet.artifacts` has the usual ones."""

    def save(self, value: T, folder: Path) -> None:
        """Write `value` into the empty `folder`; OSError when the disk is full."""
        ...

    def load(self, folder: Path) -> T:
        """The value that `save` wrote into `folder`; the files are whole when this is called."""
        ...


@dataclass(frozen=True)
class Obtained(Generic[T]):
    """A value and its cost when it was made: seconds, peak memory in bytes, device. cached: it was not made now."""

    value: T
    cached: bool
    seconds: float
    peak_memory: int
    device: str


@dataclass(frozen=True)
class Listed:
    """One line of `gauntlet store ls`. bytes: of the payload. summary: the spec's names and plain values, shortened."""

    kind: str
    key: str
    bytes: int
    created: datetime
    seconds: float
    summary: str


@dataclass(frozen=True)
class Damage:
    """An entry that failed its check, and where it was set aside; None in a store that can't be written."""

    kind: str
    key: str
    reason: str
    moved_to: Path | None


@dataclass(frozen=True)
class Pruned:
    """What a pruning removed, or would: names below the store's root, and the bytes that this frees."""

    removed: tuple[str, ...]
    bytes: int


class Store:
    """A folder of made values. Safe for many processes, and for one that is killed at any point.

    warn gets one sentence when an entry was damaged or could not be kept. Raises StoreError when `root` can't be
    written to, or with read_only, for whoever only looks, when it can't be read. Every method raises ValueError for a
    key that is not 64 hex characters or a kind that is not [a-z_]+.
    """

    def __init__(self, root: Path, warn: Callable[[str], None], *, read_only: bool = False) -> None:
        self.root = root
        self._warn = warn
        self._shelves = Shelves(root, read_only=read_only)
        self._opened = datetime.now(UTC)
        self._told: set[str] = set()

    def obtain(
        self,
        kind: str,
        key: str,
        spec: Mapping[str, object],
        codec: Codec[T],
        make: Callable[[], T],
        *,
        recompute: bool = False,
        device: str = "cpu",
    ) -> Obtained[T]:
        """The value under `key`: loaded if it is there and whole, else made, measured and kept.

        One process makes it while the others wait. `make` may obtain other keys; what it raises propagates and leaves
        nothing. With recompute only what was made since this store was opened is loaded. A value that can't be kept
        (disk full) is returned all the same, with a warning. spec says, in the entry, what the key stands for.
        """
        with noted(f"{kind}/{key}"):
            return self._obtain(kind, key, spec, codec, make, recompute, device)

    def _obtain(
        self,
        kind: str,
        key: str,
        spec: Mapping[str, object],
        codec: Codec[T],
        make: Callable[[], T],
        recompute: bool,
        device: str,
    ) -> Obtained[T]:
        with suppress(DamagedError):
            if (found := self._load(kind, key, codec, recompute)) is not None:
                return found
        with ExitStack() as held:
            try:
                held.enter_context(self._shelves.locked(kind, key))
            except OSError as error:
                self._warn(f"{kind}/{key[:12]} can't be locked ({error}): another worker may make it too")
            # It may have been damaged, or made, by a process that held the lock until now: only here is it certain.
            try:
                found = self._load(kind, key, codec, recompute)
            except DamagedError as damage:
                self._report(kind, key, damage)
                found = None
            if found is not None:
                return found
            with measured(device) as cost, obtained_inside() as inner, making(kind, key) as work:
                value = make()
            cost.seconds += work.earlier
            self._keep(kind, key, spec, codec, value, cost, inner)
            for finish in work.afterwards:
                finish()
        return Obtained(value, False, cost.seconds, cost.peak_memory, device)

    def find(self, kind: str, key: str, codec: Codec[T], *, recompute: bool = False) -> Obtained[T] | None:
        """What `obtain` would load, or None: where it isn't there, is damaged, or would be made anew."""
        with suppress(DamagedError):
            return self._load(kind, key, codec, recompute)
        return None

    def glance(self, kind: str, key: str, *, recompute: bool = False) -> Obtained[None] | None:
        """What making the value took, without a look at the value; None where `find` surely finds nothing."""
        with suppress(DamagedError):
            manifest = entry.read(self._shelves.folder(kind, key), kind, key)
            if not (recompute and manifest.created < self._opened):
                return Obtained(None, True, manifest.seconds, manifest.peak_memory, manifest.device)
        return None

    def discard(self, kind: str, key: str) -> None:
        """Remove an entry, if it is there and can be removed."""
        with suppress(OSError):
            self._shelves.discard(kind, key)

    def contains(self, kind: str, key: str) -> bool:
        """Whether an entry is there; whether it is whole is checked when it is loaded."""
        return (self._shelves.folder(kind, key) / entry.MANIFEST).is_file()

    def folder(self, kind: str, key: str) -> Path:
        """Where an entry lies, to read its files; it need not be there, and it is checked only by `obtain`."""
        return self._shelves.folder(kind, key)

    def folders(self, kinds: Collection[str]) -> Iterator[tuple[str, str, Path]]:
        """Kind, key and folder of every entry of these kinds, readable or not."""
        return (found for found in self._shelves.entries() if found[0] in kinds)

    def entries(self) -> Iterator[Listed]:
        """Every readable entry, by kind and key."""
        for kind, key, folder in self._shelves.entries():
            with suppress(DamagedError):
                found = entry.read(folder, kind, key)
                yield Listed(kind, key, found.size, found.created, found.seconds, entry.summary(found.spec))

    def verify(self) -> Iterator[Damage]:
        """Check every byte of every entry, set the damaged ones aside and yield them. One in use is skipped."""
        for kind, key, folder in self._shelves.entries():
            with ExitStack() as held:
                try:
                    held.enter_context(self._shelves.locked(kind, key, wait=False))
                except Busy:
                    continue
                except OSError:
                    # A store that can't be written has no new locks, and what lies in it is looked at all the same.
                    pass
                try:
                    entry.verify(folder, entry.read(folder, kind, key))
                except DamagedError as damage:
                    if folder.exists():
                        yield Damage(kind, key, str(damage), self._aside(kind, key))

    def _aside(self, kind: str, key: str) -> Path | None:
        with suppress(OSError):
            return self._shelves.set_aside(kind, key)
        return None

    def prune(
        self, older_than_days: float | None = None, kinds: Collection[str] = (), *, dry_run: bool = False
    ) -> Pruned:
        """Remove what was left unfinished, what was set aside as damaged, and idle locks.

        Given an age (days since it was made), kinds, or both, the entries to which all that is given applies go too.
        What another process is working on stays. With dry_run nothing is removed: it is what would be.
        """
        removed = []
        # Removing an entry may make its lock, which then goes too and is nothing that was left.
        left = {name for name, *_ in self._shelves.leftovers()}
        for listed in self._doomed(older_than_days, kinds):
            claim = self._shelves.claimed(listed.kind, listed.key, dry_run=dry_run)
            with suppress(Busy, FileNotFoundError), claim:
                if not dry_run:
                    self._shelves.discard(listed.kind, listed.key)
                removed.append((f"{listed.kind}/{listed.key}", listed.bytes))
        removed += [found for found in self._shelves.sweep(dry_run=dry_run) if found[0] in left]
        return Pruned(tuple(name for name, _ in removed), sum(size for _, size in removed))

    def _doomed(self, older_than_days: float | None, kinds: Collection[str]) -> list[Listed]:
        if older_than_days is None and not kinds:
            return []
        newest = datetime.now(UTC) - timedelta(days=older_than_days or 0.0)
        return [item for item in self.entries() if item.created <= newest and (not kinds or item.kind in kinds)]

    def _load(self, kind: str, key: str, codec: Codec[T], recompute: bool) -> Obtained[T] | None:
        """None when the entry is not there or, with recompute, too old; DamagedError when it can't be trusted."""
        folder = self._shelves.folder(kind, key)
        if not folder.exists():
            return None
        manifest = entry.read(folder, kind, key)
        if recompute and manifest.created < self._opened:
            return None
        entry.verify(folder, manifest)
        try:
            value = codec.load(folder)
        except (MemoryError, torch.OutOfMemoryError, GauntletError):
            raise
        except Exception as error:
            raise DamagedError(f"its payload can't be read, {type(error).__name__}: {error}") from error
        return Obtained(value, True, manifest.seconds, manifest.peak_memory, manifest.device)

    def _report(self, kind: str, key: str, damage: DamagedError) -> None:
        try:
            fate = f"set aside in {self._shelves.set_aside(kind, key)}"
        except OSError as error:
            fate = f"it could not be set aside ({error})"
        self._warn(f"the store's entry {kind}/{key[:12]} is damaged ({damage}): {fate}, made anew")

    def _keep(
        self,
        kind: str,
        key: str,
        spec: Mapping[str, object],
        codec: Codec[T],
        value: T,
        cost: Measurement,
        inner: dict[str, float],
    ) -> None:
        try:
            with self._shelves.draft(kind, key) as folder:
                codec.save(value, folder)
                # No fsync: after a power cut the checksums tell, and the value is made anew.
                manifest = Manifest(
                    kind=kind,
                    key=key,
                    spec=json.loads(canonical(spec)),
                    files=entry.payload_of(folder),
                    created=datetime.now(UTC),
                    seconds=cost.seconds,
                    peak_memory=cost.peak_memory,
                    device=str(cost.device),
                    versions=versions(),
                    machine=machine(cost.device),
                    threads=torch.get_num_threads(),
                    inner=inner,
                )
                entry.write(folder, manifest)
                self._shelves.publish(folder, kind, key)
        except OSError as error:
            self._tell_lost(kind, key, error)

    def _tell_lost(self, kind: str, key: str, error: OSError) -> None:
        """Once for each reason: a full disk has the same to say of hundreds of entries."""
        reason = str(error)
        if reason not in self._told:
            self._told.add(reason)
            self._warn(
                f"{kind}/{key[:12]} can't be kept in the store {self.root} ({reason}): it is lost after this run, "
                "and so is whatever meets the same"
            )
