"""The German traffic signs."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gauntlet.errors import DataError
from gauntlet.plugin import task
from gauntlet.settings import Count
from gauntlet.task import LoadContext, RawTask, TaskSource

from ._decode import Encoded, Labelled, raw_task
from ._download import fetch, one_line

_CLASSES = 43


@task
@dataclass(frozen=True)
class Gtsrb(TaskSource):
    """26,640 + 12,630 traffic signs of 43 kinds, resized to 3 x size x size, in DATA/gtsrb.

    Stallkamp, Schlipsing, Salmen & Igel 2012, Neural Networks 32. The whole image is taken, not the sign's box.
    """

    size: Count = 32

    def load(self, context: LoadContext) -> RawTask:
        """DataError when it is not there, whole, and can't be downloaded."""

        def download() -> object:
            from torchvision.datasets import GTSRB

            return [GTSRB(context.data_dir, split, download=True) for split in ("train", "test")]

        folder = context.data_dir / "gtsrb"
        images, table = folder / "GTSRB" / "Final_Test" / "Images", folder / "GT-final_test.csv"
        signs = folder / "GTSRB" / "Training"
        if not (signs.is_dir() and images.is_dir() and table.is_file()):
            fetch("GTSRB", folder, context, download)
        training, test = _labelled(_training(signs), signs), _labelled(_test(images, table), table)
        names = tuple(f"sign {label}" for label in range(_CLASSES))
        return raw_task(training, test, names, "GTSRB (Stallkamp et al. 2012)", self.size, 3)


def _labelled(rows: Iterator[tuple[Path, int]], where: Path) -> Labelled:
    found = list(rows)
    if not found:
        raise DataError(f"{where} lists no image; fetch GTSRB anew")
    return Labelled([Encoded(str(path), path) for path, _ in found], [label for _, label in found])


def _training(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.glob("*/*.ppm")):
        yield path, _label(path.parent.name, str(path.parent))


def _test(folder: Path, table: Path) -> Iterator[tuple[Path, int]]:
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            for row, record in enumerate(csv.DictReader(stream, delimiter=";", skipinitialspace=True), start=2):
                # Only the last part of the name: a table must not point outside its folder.
                yield folder / Path(record["Filename"]).name, _label(record["ClassId"] or "", f"{table}, line {row}")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{table} can't be read ({one_line(error)}); fetch GTSRB anew") from error


def _label(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < _CLASSES):
        raise DataError(f"{where}: class {text!r} is out of range; legal: 0 to {_CLASSES - 1}")
    return int(text)
