"""People in Photo Albums."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gauntlet.errors import DataError
from gauntlet.plugin import task
from gauntlet.settings import Count, NonNegative
from gauntlet.task import LoadContext, RawTask, TaskSource

from ._decode import Encoded, Labelled, raw_task
from ._people import CLASS_NAMES, Head, Persons, box_around, identity_label, identity_names, label_of

_INDEX = Path("annotations", "index.txt")
_FIELDS = 8
_MAX_BYTES = 1 << 28
_MAX_PIXEL = 1 << 20


@task
@dataclass(frozen=True)
class Pipa(TaskSource):
    """Head counts: how many heads a photograph shows, 1 to 5 or more, cropped around all of them, 3 x size x size.

    Zhang et al. 2015, arXiv:1501.05703; the task and its backdoor are Bagdasaryan & Shmatikov's, arXiv:2005.03823.
    PATH holds the data set as it was published: annotations/index.txt, whose lines are `photoset_id photo_id xmin ymin
    width height identity_id subset_id`, one a head, and the photographs PHOTOSET_PHOTO.jpg in folders beside it (train,
    val, test, leftover; their names don't matter). Photographs that the index doesn't know are passed over, and those
    that aren't there.

    The auxiliary label is an identity: 0, or 1 to `persons` for the persons with the most photographs; where several
    of them are there, the one with more photographs counts. The crop is the box of all heads, wider by `margin` of the
    longest head.
    Differs: the data set's own parts hold different people, so a person would never be in training and test; all
    photographs are pooled, and the engine splits the test set off. Backdoors 101 drew classes with the weights .03,
    .07, .2, .35 and .35; that is left out: each photograph is seen once an epoch.
    """

    path: Path
    size: Count = 64
    margin: NonNegative = 0.5
    persons: Persons = 4

    def files(self) -> tuple[Path, ...]:
        """The index and the photographs that it names."""
        return (self.path / _INDEX, *(place for place, _ in _photos(self.path)))

    def load(self, context: LoadContext) -> RawTask:  # noqa: ARG002
        """DataError names the file and the line that won't do."""
        photos = _photos(self.path)
        shown = Counter(identity for _, heads in photos for identity in {head.identity for head in heads})
        most = sorted(shown, key=lambda identity: (-shown[identity], identity))[: self.persons]
        if len(most) < self.persons:
            raise DataError(f"{self.path / _INDEX} knows {len(most)} person(s), but persons = {self.persons}")
        training = Labelled(
            [Encoded(str(place), place, box_around(heads, self.margin)) for place, heads in photos],
            [label_of(heads) for _, heads in photos],
        )
        raw = raw_task(training, None, CLASS_NAMES, "PIPA (Zhang et al. 2015), head counts", self.size, 3)
        identities = torch.tensor([identity_label(heads, most) for _, heads in photos])
        return replace(raw, auxiliary=identities, auxiliary_names=identity_names(most))


def _photos(path: Path) -> list[tuple[Path, tuple[Head, ...]]]:
    """The photographs that are there with their heads, in the index's order."""
    index = path / _INDEX
    found: dict[str, list[Head]] = {}
    for name, head in _heads(index):
        found.setdefault(name, []).append(head)
    places = _places(path)
    photos = [(places[name], tuple(heads)) for name, heads in found.items() if name in places]
    if not photos:
        raise DataError(f"{path} holds none of the {len(found):,} photographs of {index}: expected train/SET_PHOTO.jpg")
    return photos


def _heads(index: Path) -> Iterator[tuple[str, Head]]:
    """The photographs' file names with one head each, line by line."""
    try:
        size = index.stat().st_size
        if size > _MAX_BYTES:
            raise DataError(f"{index} has {size:,} bytes; legal: at most {_MAX_BYTES:,}")
        lines = index.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"{index} can't be read: {reason}; expected PIPA's index of heads") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _head(line.split(), f"{index}, line {number}")


def _head(fields: list[str], where: str) -> tuple[str, Head]:
    if len(fields) != _FIELDS:
        raise DataError(f"{where} has {len(fields)} fields; legal: {_FIELDS}, the identifiers, the box and two more")
    # Plain digits only: the first two become a file's name.
    if not all(field.isascii() and field.isdigit() and len(field) < 30 for field in fields[:2]):
        raise DataError(f"{where}: the photograph {fields[0]} {fields[1]} is not called by two numbers")
    try:
        left, top, width, height, identity = (int(field) for field in fields[2:7])
    except ValueError:
        raise DataError(
            f"{where}: the box and the identity must be whole numbers, not {' '.join(fields[2:7])}"
        ) from None
    if width < 1 or height < 1 or max(abs(left), abs(top), width, height) > _MAX_PIXEL:
        raise DataError(f"{where}: a head of {width}x{height} pixels at {left}, {top} is impossible")
    return f"{fields[0]}_{fields[1]}.jpg", Head(left, top, width, height, identity)


def _places(path: Path) -> dict[str, Path]:
    """The photographs in the folders of `path` by name, the same on every machine."""
    try:
        folders = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
        return {
            name: path / folder / name
            for folder in reversed(folders)
            for name in os.listdir(path / folder)
            if name.endswith(".jpg")
        }
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
