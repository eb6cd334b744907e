"""Curves as TensorBoard's event files: `tensorboard --logdir DIR` draws them while the trainings run."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gauntlet.errors import SettingError
from gauntlet.recorder import Curves

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

__all__ = ["TensorBoard"]

_UNFIT = re.compile(r"[^\w.,=+\[\]-]+")
_LONGEST = 200
"""Bytes of a folder's name; file systems take 255."""


@dataclass(eq=False)
class TensorBoard:
    """A `gauntlet.recorder.Recorder`: root/<case>/<seed>/<purpose>, a training each; a repeated purpose gets a number.

    Processes write files of their own into the same folders. When one can't be written any more, `warn` gets one
    sentence, and the process writes no more of them: no case fails for want of a curve. Raises SettingError when the
    package tensorboard is absent or `root` can't be written to.
    """

    root: Path
    warn: Callable[[str], None]
    _opened: Counter[Path] = field(default_factory=Counter, init=False)
    _given_up: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise SettingError(
                "--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(
                f"--tensorboard {self.root} can't be written: {error.strerror or error}; choose another folder"
            ) from error

    @contextmanager
    def __call__(self, *where: str) -> Iterator[Curves]:
        """The curves of one training."""
        case, seed, *purpose = where
        folder = self.root / _file_name(case) / _file_name(seed) / _file_name(" ".join(purpose))
        self._opened[folder] += 1
        if self._opened[folder] > 1:
            folder = folder.with_name(f"{folder.name}-{self._opened[folder]}")
        yield _EventFile(folder, self._append)

    def _append(self, path: Path, events: Iterable[Event]) -> None:
        """Events go into the file at once: a writer with a thread of its own would raise there, where nobody looks."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._given_up:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                for event in events:
                    RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            self._given_up = True
            self.warn(
                f"--tensorboard {self.root} can't be written: {error.strerror or error}; no more curves are drawn"
            )


class _EventFile:
    """One training's event file, made when there is something to write."""

    def __init__(self, folder: Path, append: Callable[[Path, Iterable[Event]], None]) -> None:
        self._folder = folder
        self._append = append
        self._path: Path | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        named = [Summary.Value(tag=name, simple_value=value) for name, value in values.items() if math.isfinite(value)]
        now = time.time()
        events = [Event(wall_time=now, step=step, summary=Summary(value=[value])) for value in named]
        if self._path is None:
            self._path = self._folder / _event_file_name()
            events = [*_beginning(step), *events]
        self._append(self._path, events)


def _event_file_name() -> str:
    """TensorBoard reads the files of a folder in the order of their names, and those with `tfevents` alone."""
    return f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"


def _beginning(step: int) -> Iterator[Event]:
    """What an interrupted training wrote from `step` on, after its last checkpoint, is written again."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    now = time.time()
    yield Event(wall_time=now, file_version="brain.Event:2")
    yield Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START))


def _file_name(text: str) -> str:
    """`text` without what file systems don't take; long ones are cut and told apart by a hash."""
    name = _UNFIT.sub("_", text)
    if name.strip(".") and len(name.encode()) <= _LONGEST:
        return name
    short = name.encode()[:_LONGEST].decode(errors="ignore").strip(".")
    return f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
