"""Images in an HDF5 file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gauntlet.errors import DataError
from gauntlet.formats.hdf5_images import Layout, ValueRange, read_images
from gauntlet.plugin import task
from gauntlet.settings import Size
from gauntlet.task import LoadContext, RawTask, TaskSource

from ._classes import Classes, class_count


@task
@dataclass(frozen=True)
class H5(TaskSource):
    """PATH: an HDF5 file with an array of images and one of labels, as CSAW-HackML-2020 keeps them.

    layout and value_range say how the images lie and which values they have, where the file leaves it open
    (`gauntlet.formats.hdf5_images`). test: a second file, which is the test set; without it the engine splits one off.
    size: [height, width] to resize the images to, bilinear.
    clean_only: the clean images of a model that somebody handed over: nobody trains on them from scratch. classes:
    how many there are, where the highest does not occur; by default one more than the highest label.
    """

    reads: ClassVar[tuple[str, ...]] = (".h5", ".hdf5")

    path: Path
    image_key: str = "data"
    label_key: str = "label"
    layout: Layout = "auto"
    value_range: ValueRange = "auto"
    test: Path | None = None
    size: Size | None = None
    clean_only: bool = False
    classes: Classes | None = None

    def files(self) -> tuple[Path, ...]:
        """The one or two files."""
        return (self.path,) if self.test is None else (self.path, self.test)

    def load(self, context: LoadContext) -> RawTask:  # noqa: ARG002
        """DataError names the file and what is wrong with it."""
        parts = [
            read_images(file, self.image_key, self.label_key, self.layout, self.value_range, self.size)
            for file in self.files()
        ]
        shapes = [list(images.shape[1:]) for images, _, _ in parts]
        if shapes[-1] != shapes[0]:
            # Resizing keeps the channels as they are.
            fits = self.size is None and shapes[-1][0] == shapes[0][0]
            hint = ", or the `size`, or `--resize` to gauntlet audit, to resize them" if fits else ""
            raise DataError(
                f"{self.test} holds images {shapes[-1]} in [C, H, W], {self.path} {shapes[0]}; due: one shape{hint}"
            )
        labelled = list(zip(self.files(), parts, strict=True))
        count = class_count([(str(file), labels) for file, (_, labels, _) in labelled], self.classes)
        images, labels, _ = parts[0]
        test_images, test_labels, _ = parts[1] if self.test is not None else (None, None, None)
        names = tuple(str(label) for label in range(count))
        provenance = f"HDF5 {' and '.join(f'{file.name} ({form})' for file, (_, _, form) in labelled)}"
        doubts = tuple(form.doubt for _, _, form in parts if form.doubt)
        return RawTask(images, labels, names, provenance, test_images, test_labels, self.clean_only, doubts=doubts)
