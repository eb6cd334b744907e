"""The base of every data set plug-in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from gauntlet.errors import missing

__all__ = ["LoadContext", "RawTask", "TaskSource"]


@dataclass(frozen=True)
class LoadContext:
    """data_dir: the folder where data sets lie or are downloaded to. offline: refuse to download."""

    data_dir: Path
    offline: bool = False


@dataclass(frozen=True, eq=False)
class RawTask:
    """What a source yields: uint8 NCHW images and int64 labels, all of one size.

    Without a test set of its own (test_images None) the engine splits one off, stratified. clean_only: clean images of
    a model that somebody handed over. Nobody trains on them from scratch: one half, stratified, is the defender's
    reserve, the other the test (all is reserve beside an own test set), any class may be absent, and pixels stay as
    they are, since the model brings its own normalisation.

    auxiliary, test_auxiliary: int64 [N], a second label of each image from 0 on, -1 where nobody knows it: what a
    backdoor may aim at beside the label (`gauntlet.labels`). Nobody else sees it. auxiliary_names: one a value.
    doubts: a sentence for each thing that looks as if the source were read otherwise than it is meant.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    provenance: str
    test_images: Tensor | None = None
    test_labels: Tensor | None = None
    clean_only: bool = False
    auxiliary: Tensor | None = None
    test_auxiliary: Tensor | None = None
    auxiliary_names: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskSource:
    """A data set. Its fields are its settings; a source with a `path` field is written `name:PATH`.

    reads: suffixes of the files that its `path` takes, as `.h5`; `/` stands for a folder.
    """

    reads: ClassVar[tuple[str, ...]] = ()

    def files(self) -> tuple[Path, ...]:
        """The user's own files that this source reads: when one changes, the task is prepared anew."""
        return ()

    def load(self, context: LoadContext) -> RawTask:
        """Read, or download, the data; DataError says what is missing and where it was looked for."""
        raise NotImplementedError(missing(self, "load"))
