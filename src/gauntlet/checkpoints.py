"""Checkpoints: a training that was interrupted goes on from its last one and ends in the bytes of one that was not.

They are entries of the store, so that they are checksummed, appear in one rename, and are listed and pruned like all
else. Which training one belongs to is part of its key: one of another configuration is never found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gauntlet.artifacts import TensorsCodec
from gauntlet.course import Course, Facts, Saved
from gauntlet.keys import key
from gauntlet.making import Making
from gauntlet.store import Store

__all__ = ["EVERY", "KIND", "Checkpoint"]

KIND = "checkpoint"
"""The kind of these entries in the store."""

EVERY = 20.0
"""Seconds of training between two checkpoints at least: what takes less writes none."""

_SHARE = 50
"""Of the time between two checkpoints, writing one takes at most this part."""

_FACTS = "course.json"


class _AbsentError(Exception):
    """There is no checkpoint to go on from."""


@dataclass(eq=False)
class Checkpoint:
    """Where one training of a value in the making keeps how far it is.

    spec: what, within `work`, the training is told by. who: for people. Two places take turns, so that a process that
    is killed while it writes leaves the checkpoint before. What is kept goes when the value has been made.
    """

    store: Store
    work: Making
    spec: dict[str, Any]
    who: str
    device: str
    recompute: bool = False
    _places: tuple[str, str] = field(init=False)
    _last: int = field(default=1, init=False)
    _begun: float = field(default_factory=time.perf_counter, init=False)
    _written: float = field(default_factory=time.perf_counter, init=False)
    _pause: float = field(default_factory=lambda: EVERY, init=False)

    def __post_init__(self) -> None:
        number = self.work.trainings
        self.work.trainings += 1
        self.spec = {"of": self.work.kind, "entry": self.work.key, "number": number, **self.spec}
        self._places = (key({**self.spec, "place": 0}), key({**self.spec, "place": 1}))

    def resume(self, course: Course) -> bool:
        """Take `course` on to where the last checkpoint left it; whether there was one.

        A damaged one is set aside, and the store says so.
        """
        found = {place: saved for place in (0, 1) if (saved := self._load(place, course)) is not None}
        if not found:
            return False
        self._last = max(found, key=lambda place: found[place].facts.done)
        course.adopt(found[self._last])
        self.work.earlier += course.seconds
        self.work.afterwards.append(self.discard)
        return True

    def offer(self, course: Course) -> None:
        """Keep `course`, whose epoch has just ended, when it is time."""
        now = time.perf_counter()
        if now - self._written < self._pause:
            return
        saved = course.saved(course.seconds + now - self._begun)
        place, spec = 1 - self._last, {"who": self.who, **self.spec, "steps": course.done}
        self._remove(place)
        self.store.obtain(KIND, self._places[place], spec, _CourseCodec(course), lambda: saved, device=self.device)
        if self.discard not in self.work.afterwards:
            self.work.afterwards.append(self.discard)
        # The one before stays while there is no room for another.
        if self.store.contains(KIND, self._places[place]):
            self._remove(self._last)
            self._last = place
        self._written = time.perf_counter()
        self._pause = max(EVERY, _SHARE * (self._written - now))

    def discard(self) -> None:
        """Remove what was kept."""
        for place in (0, 1):
            self._remove(place)

    def _remove(self, place: int) -> None:
        if self.store.contains(KIND, self._places[place]):
            self.store.discard(KIND, self._places[place])

    def _load(self, place: int, course: Course) -> Saved | None:
        if not self.store.folder(KIND, self._places[place]).exists():
            return None

        def absent() -> Saved:
            raise _AbsentError

        try:
            return self.store.obtain(
                KIND, self._places[place], {}, _CourseCodec(course), absent, recompute=self.recompute
            ).value
        except _AbsentError:
            return None


@dataclass(frozen=True, eq=False)
class _CourseCodec:
    """A saved course of one training: tensors as safetensors, the rest as JSON."""

    course: Course
    tensors: TensorsCodec = field(default_factory=TensorsCodec)

    def save(self, value: Saved, folder: Path) -> None:
        self.tensors.save(value.tensors, folder)
        (folder / _FACTS).write_text(value.facts.model_dump_json(), encoding="utf-8")

    def load(self, folder: Path) -> Saved:
        facts = Facts.model_validate_json((folder / _FACTS).read_bytes())
        saved = Saved(self.tensors.load(folder), facts)
        self.course.check(saved)
        return saved
