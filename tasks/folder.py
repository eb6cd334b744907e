"""Image files sorted into folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gauntlet.errors import DataError
from gauntlet.plugin import task
from gauntlet.settings import Count
from gauntlet.task import LoadContext, RawTask, TaskSource

from ._decode import SUFFIXES, Encoded, Labelled, raw_task

_TEST_NAMES = ("test", "validation", "valid", "val")


@task
@dataclass(frozen=True)
class Folder(TaskSource):
    """A folder for each class: PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/* and a test set split off.

    The layout of torchvision's ImageFolder. Hidden files and files that are no images are passed over. size resizes
    to size x size, channels converts to grey (1) or colour (3); by default the images say both.
    """

    path: Path
    size: Count | None = None
    channels: Literal[1, 3] | None = None

    def files(self) -> tuple[Path, ...]:
        """Every image file."""
        return tuple(
            file
            for part in _parts(self.path)
            if part is not None
            for name in _folders(part)
            for file in _images(part / name)
        )

    def load(self, context: LoadContext) -> RawTask:  # noqa: ARG002
        """DataError names the folder or file that won't do."""
        training, test = _parts(self.path)
        names = _folders(training)
        if not names:
            raise DataError(f"{training} has no class folders; expected {training}/CLASS/IMAGE")
        if test is not None and (odd := sorted(set(names) ^ set(_folders(test)))):
            raise DataError(f"class {odd[0]!r} is in only one of {training} and {test}; both need every class")
        return raw_task(
            _labelled(training, names),
            None if test is None else _labelled(test, names),
            names,
            f"image folder {self.path.name}",
            self.size,
            self.channels,
        )


def _parts(path: Path) -> tuple[Path, Path | None]:
    """The training folder and the test folder. A class may be called `train` if other classes stand beside it."""
    folders = _folders(path)
    if "train" not in folders or not set(folders) <= {"train", *_TEST_NAMES}:
        return path, None
    return path / "train", next((path / name for name in _TEST_NAMES if name in folders), None)


def _folders(path: Path) -> tuple[str, ...]:
    try:
        with os.scandir(path) as entries:
            return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))
    except OSError as error:
        raise DataError(f"folder {path} can't be read: {error.strerror}") from None


def _labelled(folder: Path, names: tuple[str, ...]) -> Labelled:
    part = Labelled([], [])
    for label, name in enumerate(names):
        files = list(_images(folder / name))
        if not files:
            raise DataError(f"class folder {folder / name} holds no image; legal: {', '.join(sorted(SUFFIXES))}")
        part.images.extend(Encoded(str(file), file) for file in files)
        part.labels.extend([label] * len(files))
    return part


def _images(folder: Path) -> Iterator[Path]:
    """The image files at any depth, in one order on every machine."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {folder} can't be read: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):  # a link may lead back up
            yield from _images(Path(entry.path))
        elif Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
            yield Path(entry.path)
