"""Curves as TensorBoard's event files: `tensorboard --logdir DIR` draws them while the trainings run."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gauntlet.errors import SettingError
from gauntlet.recorder import Curves

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoard"]

_UNFIT = re.compile(r"[^\w.,=+\[\]-]+")
_LONGEST = 200
"""Bytes of a folder's name; file systems take 255."""


@dataclass(eq=False)
class TensorBoard:
    """A `gauntlet.recorder.Recorder`: root/<case>/<seed>/<purpose>, a training each; a repeated purpose gets a number.

    Processes write files of their own into the same folders. Raises SettingError when the package tensorboard is
    absent or `root` can't be written to.
    """

    root: Path
    _opened: Counter[Path] = field(default_factory=Counter, init=False)

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
        """The curves of one training, whose files are closed at the end of the block."""
        case, seed, *purpose = where
        folder = self.root / _file_name(case) / _file_name(seed) / _file_name(" ".join(purpose))
        self._opened[folder] += 1
        if self._opened[folder] > 1:
            folder = folder.with_name(f"{folder.name}-{self._opened[folder]}")
        curves = _EventFile(folder)
        try:
            yield curves
        finally:
            curves.close()


class _EventFile:
    """One training's event file, made when there is something to write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            # What an interrupted training wrote after its last checkpoint is written again.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write out what is still in memory."""
        if self._writer is not None:
            self._writer.close()


def _file_name(text: str) -> str:
    """`text` without what file systems don't take; long ones are cut and told apart by a hash."""
    name = _UNFIT.sub("_", text)
    if name.strip(".") and len(name.encode()) <= _LONGEST:
        return name
    short = name.encode()[:_LONGEST].decode(errors="ignore").strip(".")
    return f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
