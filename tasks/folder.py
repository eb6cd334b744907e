"""Image files sorted into folders."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from gauntlet.errors import DataError
from gauntlet.plugin import task
from gauntlet.settings import Count, Size
from gauntlet.task import LoadContext, RawTask, TaskSource

from ._classes import Classes
from ._decode import SUFFIXES, Encoded, Labelled, raw_task

_TEST_NAMES = ("test", "validation", "valid", "val")


@task
@dataclass(frozen=True)
class Folder(TaskSource):
    """A folder for each class: PATH/train/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/* and a test set split off.

    The layout of torchvision's ImageFolder. Hidden files and files that are no images are passed over. size resizes
    to size x size or [height, width], channels converts to grey (1) or colour (3); by default the images say both.
    test: another folder of class folders, which is the test set. clean_only: the clean images of a model that somebody
    handed over: nobody trains on them from scratch. classes: how many there are, for a model whose classes do not all
    occur.

    Classes are numbered in the folders' alphabetical order, as ImageFolder does, so that 10 comes before 2. With
    clean_only or classes, folders that are all called by whole numbers, zeros in front allowed, have them for labels.
    """

    reads: ClassVar[tuple[str, ...]] = ("/",)

    path: Path
    size: Count | Size | None = None
    channels: Literal[1, 3] | None = None
    test: Path | None = None
    clean_only: bool = False
    classes: Classes | None = None

    def files(self) -> tuple[Path, ...]:
        """Every image file."""
        return tuple(
            file
            for part in self._parts()
            if part is not None
            for name in _folders(part)
            for file in _images(part / name)
        )

    def load(self, context: LoadContext) -> RawTask:  # noqa: ARG002
        """DataError names the folder or file that won't do."""
        training, test = self._parts()
        parts = [training] if test is None else [training, test]
        found = [_folders(part) for part in parts]
        for part, folders in zip(parts, found, strict=True):
            if not folders:
                raise DataError(f"{part} has no class folders; expected {part}/CLASS/IMAGE")
        names = self._class_names(parts, found)
        labelled = [_labelled(part, {name: _place(name, names) for name in _folders(part)}) for part in parts]
        raw = raw_task(
            labelled[0],
            labelled[1] if test is not None else None,
            names,
            f"image folder {self.path.name}",
            self.size,
            self.channels,
        )
        return replace(raw, clean_only=self.clean_only)

    def _parts(self) -> tuple[Path, Path | None]:
        """The training folder and the test folder."""
        return _parts(self.path) if self.test is None else (self.path, self.test)

    def _class_names(self, parts: list[Path], found: list[tuple[str, ...]]) -> tuple[str, ...]:
        """The class names in the order of their labels."""
        told = self.clean_only or self.classes is not None
        if told and all(map(_is_number, itertools.chain.from_iterable(found))):
            return self._numbers(parts, found)
        names = found[0]
        if odd := sorted(set(names) ^ set(found[-1])):
            raise DataError(f"class {odd[0]!r} is in only one of {parts[0]} and {parts[-1]}; both need every class")
        if self.classes is not None and len(names) != self.classes:
            raise DataError(
                f"{parts[0]} has {len(names)} class folders, but classes = {self.classes}: call them by their numbers, "
                f"0 to {self.classes - 1}"
            )
        return names

    def _numbers(self, parts: list[Path], found: list[tuple[str, ...]]) -> tuple[str, ...]:
        """The labels as class names, where the folders are called by them."""
        numbers = {int(name) for name in itertools.chain.from_iterable(found)}
        count = self.classes or len(numbers)
        for part, folders in zip(parts, found, strict=True):
            if wrong := next((name for name in folders if int(name) >= count), None):
                if self.classes is not None:
                    raise DataError(f"{part / wrong}: class {wrong} is out of range; legal: 0 to {count - 1}")
                raise DataError(
                    f"{part / wrong}: the class folders' numbers are the labels, and no folder is called "
                    f"{min(set(range(count)) - numbers)}; give the number of `classes` where not all of them occur"
                )
        return tuple(str(label) for label in range(count))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 10


def _place(name: str, names: tuple[str, ...]) -> int:
    """The label of a class folder."""
    return names.index(name) if name in names else int(name)


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


def _labelled(folder: Path, places: dict[str, int]) -> Labelled:
    part = Labelled([], [])
    for name, label in places.items():
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
