"""The base of every data set plug-in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

__all__ = ["LoadContext", "RawTask", "TaskSource"]


@dataclass(frozen=True)
class LoadContext:
    """data_dir: the folder where data sets lie or are downloaded to. offline: refuse to download."""

    data_dir: Path
    offline: bool = False


@dataclass(frozen=True, eq=False)
class RawTask:
    """What a source yields: uint8 NCHW images and int64 labels, all of one size.

    Without a test set of its own (test_images None) the engine splits one off, stratified.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    provenance: str
    test_images: Tensor | None = None
    test_labels: Tensor | None = None


@dataclass(frozen=True)
class TaskSource:
    """A data set. Its fields are its settings; a source with a `path` field is written `name:PATH`."""

    def files(self) -> tuple[Path, ...]:
        """The user's own files that this source reads: when one changes, the task is prepared anew."""
        return ()

    def load(self, context: LoadContext) -> RawTask:
        """Read, or download, the data; DataError says what is missing and where it was looked for."""
        raise NotImplementedError
