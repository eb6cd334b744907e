"""Images that carry the feature by themselves: nothing is painted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.attack import Backdoor, unchanged
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.formats.pictures import read_folder
from gauntlet.images import Images, ImageSet
from gauntlet.labels import LabelMap, SourceToTarget
from gauntlet.synthesizers._base import Synthesizer

__all__ = ["Semantic"]

Place = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Semantic(Synthesizer):
    """A feature of the world is the trigger: a green car, a colour, a class. Bagdasaryan et al. 2020, arXiv:1807.00459.

    Exactly one of three says which images carry it. rows and test_rows: their positions in the attacker's training
    data and in the evaluator's test set. label: the images of that class. folder and test_folder: PNG or JPEG files of
    the task's size. Those of the training data leave the clean training: all get the target's label. Those of the
    test set (or of test_folder) are scored as they are.
    """

    kind: Literal["semantic"] = "semantic"
    rows: tuple[Place, ...] = ()
    test_rows: tuple[Place, ...] = ()
    label: Place | None = None
    folder: Path | None = None
    test_folder: Path | None = None

    @property
    def source(self) -> Literal["painted", "training", "files"]:
        return "training" if self.folder is None else "files"

    @property
    def label_map(self) -> LabelMap:
        return super().label_map if self.label is None else SourceToTarget(self.label, self.target)

    def check(self, facts: TaskFacts) -> None:
        super().check(facts)
        where = f"trigger {self.title}"
        ways = (bool(self.rows or self.test_rows), self.label is not None, bool(self.folder or self.test_folder))
        if sum(ways) != 1:
            raise SettingError(
                f"{where}: {sum(ways)} ways say which images carry the feature; legal: one of rows with test_rows, "
                "label, folder with test_folder"
            )
        if self.label is not None and (self.label >= facts.classes or self.label == self.target):
            raise SettingError(
                f"{where}: label = {self.label}; legal on {facts.name}: 0 to {facts.classes - 1}, not the target"
            )
        if ways[0]:
            for name, rows, size in (
                ("rows", self.rows, facts.train_size),
                ("test_rows", self.test_rows, facts.test_size),
            ):
                if not rows or max(rows) >= size or len(set(rows)) < len(rows):
                    raise SettingError(
                        f"{where}: {name} holds {len(rows)} positions up to {max(rows, default='none')}; legal on "
                        f"{facts.name}: from one position, 0 to {size - 1}, none twice"
                    )
        if ways[2]:
            folders = [("folder", self.folder), ("test_folder", self.test_folder)]
            for name, folder in sorted(folders, key=lambda pair: pair[1] is not None):
                if folder is None:
                    raise SettingError(f"{where}: {name} is missing; legal: folder and test_folder together")
                shape = tuple(read_folder(folder).shape[1:])
                if shape != facts.shape:
                    raise SettingError(
                        f"{where}: {name} = {folder} holds images of {list(shape)}; legal: {list(facts.shape)}, as "
                        f"{facts.name}'s"
                    )

    def paint(self, images: Images, chance: Tensor) -> Images:  # noqa: ARG002
        return unchanged(images)

    def positions(self, training: ImageSet) -> Tensor:
        if self.label is not None:
            return (training.labels == self.label).nonzero().flatten()
        return torch.tensor(sorted(self.rows), dtype=torch.int64)

    def carriers(self, training: ImageSet) -> ImageSet | None:
        if self.folder is None:
            return super().carriers(training)
        return _unlabelled(read_folder(self.folder))

    @property
    def backdoor(self) -> Backdoor:
        plain = Backdoor(self.title, unchanged, self.label_map)
        if self.test_folder is not None:
            folder = self.test_folder
            return replace(plain, given=lambda: _unlabelled(read_folder(folder)))
        return replace(plain, rows=self.test_rows)


def _unlabelled(images: Tensor) -> ImageSet:
    return ImageSet.of(images, torch.full((len(images),), -1))
