"""Images in Parquet files, as the Hugging Face hub lays them out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gauntlet.errors import DataError
from gauntlet.files import fault
from gauntlet.plugin import task
from gauntlet.settings import Count
from gauntlet.task import LoadContext, RawTask, TaskSource

from ._decode import Labelled, raw_task
from ._table import Table, read_table

_SPLIT = re.compile(r"(?<![a-z])(train|test|validation|valid|val)(?![a-z])")


@task
@dataclass(frozen=True)
class Parquet(TaskSource):
    """PATH: a folder with train-*.parquet and test-*.parquet (or its `data` folder), or one file.

    Without test files, validation files are the test set; with both, validation stays unused. Without either, or
    from one file, the engine splits a test set off. Each row has an image (encoded bytes, or a struct with `bytes`)
    and a whole-number label; class names come from the hub's metadata. size resizes to size x size, channels
    converts to grey (1) or colour (3); by default the images say both.
    """

    path: Path
    size: Count | None = None
    channels: Literal[1, 3] | None = None
    image_column: str = "image"
    label_column: str = "label"

    def files(self) -> tuple[Path, ...]:
        """The Parquet files that are read."""
        training, test = _parts(self.path)
        return (*training, *test)

    def load(self, context: LoadContext) -> RawTask:  # noqa: ARG002
        """DataError names the file and row that won't do."""
        training, test = ([self._read(file) for file in files] for files in _parts(self.path))
        names = next((table.class_names for table in (*training, *test) if table.class_names), None)
        if names is None:
            names = tuple(str(label) for label in range(_count_classes(training)))
        for table in (*training, *test):
            table.check_labels(len(names))
        origin = f"Parquet {', '.join(table.file.name for table in (*training, *test))}"
        return raw_task(_joined(training), _joined(test) if test else None, names, origin, self.size, self.channels)

    def _read(self, file: Path) -> Table:
        return read_table(file, self.image_column, self.label_column)


def _count_classes(tables: Sequence[Table]) -> int:
    """One more than the highest label. A label beyond the number of rows can't be honest, and is for check_labels."""
    rows = sum(len(table.labels) for table in tables)
    highest = max(max(table.labels) for table in tables)
    return max(1, min(highest + 1, rows))


def _joined(tables: Sequence[Table]) -> Labelled:
    return Labelled(
        [image for table in tables for image in table.images],
        [label for table in tables for label in table.labels],
    )


def _parts(path: Path) -> tuple[list[Path], list[Path]]:
    """The training files and the test files. DataError for one that is no regular file."""
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a Parquet file, or a folder with train-*.parquet in it")
    training, test = _listed(path) if path.is_dir() else ([path], [])
    for file in (*training, *test):
        if why := fault(file):
            raise DataError(f"{file}: {why}")
    return training, test


def _listed(path: Path) -> tuple[list[Path], list[Path]]:
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file), []).append(file)
    if set(by_split) == {""}:
        return files, []
    if "" in by_split:
        raise DataError(f"{by_split[''][0]} says neither train nor test in its name, as other files beside it do")
    if "train" not in by_split:
        raise DataError(f"{path} has no training files; expected train-*.parquet in it or in its data folder")
    return by_split["train"], by_split.get("test") or by_split.get("validation") or []


def _split_of(file: Path) -> str:
    found = _SPLIT.search(file.stem.lower())
    if found is None:
        return ""
    return "validation" if found[1].startswith("val") else found[1]
