"""A task made ready: checked, split, hashed, and as one file of tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gauntlet.errors import DataError
from gauntlet.facts import TaskFacts
from gauntlet.files import is_utf8
from gauntlet.splits import halved, split
from gauntlet.task import RawTask

__all__ = ["FactsCodec", "Prepared", "PreparedCodec", "Split", "prepare_raw"]

_FACTS = TypeAdapter(TaskFacts)
_FLOATS = TypeAdapter(tuple[float, ...])
_SPLITS = ("training", "reserve", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 [N, C, H, W]. labels: int64 [N]. index: int64 [N], each image's row in the source, where the
    rows of an own test set are counted on after the training rows. auxiliary: int64 [N], or None.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    auxiliary: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By name; without the auxiliary labels where there are none."""
        named = {"images": self.images, "labels": self.labels, "index": self.index}
        return named if self.auxiliary is None else named | {"auxiliary": self.auxiliary}


@dataclass(frozen=True, eq=False)
class Prepared:
    """mean, std: of the training split by channel, of values in [0, 1]; std is 1 for a channel that never varies.
    Without a training split they are 0 and 1.
    """

    facts: TaskFacts
    training: Split
    reserve: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]


def prepare_raw(raw: RawTask, name: str) -> Prepared:
    """Check what a source yielded and split it. DataError says what is wrong with it."""
    _check(raw, name)
    classes = len(raw.class_names)
    divide = halved if raw.clean_only else split
    rows = divide(raw.labels, classes, own_test=raw.test_images is not None)
    training, reserve, test = (_select(raw, part) for part in (rows.training, rows.reserve, rows.test))
    origin = f"a stratified {'half' if raw.clean_only else 'quarter'} of the images"
    if raw.test_images is not None and raw.test_labels is not None:
        size = len(raw.test_images)
        index = torch.arange(len(raw.images), len(raw.images) + size)
        test = Split(raw.test_images.contiguous(), raw.test_labels, index, raw.test_auxiliary)
        origin = "the source's own"
    mean, std = _moments(training.images)
    channels, height, width = raw.images.shape[1:]
    facts = TaskFacts(
        name=name,
        shape=(channels, height, width),
        class_names=raw.class_names,
        train_counts=_counts(training, classes),
        reserve_counts=_counts(reserve, classes),
        test_counts=_counts(test, classes),
        hash=_hash((training, reserve, test), classes, len(raw.auxiliary_names)),
        provenance=f"{raw.provenance}; test set: {origin}",
        auxiliary_names=raw.auxiliary_names,
        doubts=raw.doubts,
    )
    return Prepared(facts, training, reserve, test, mean, std)


def _check(raw: RawTask, name: str) -> None:
    # Both are kept as JSON.
    if odd := next((each for each in (name, raw.provenance, *raw.class_names) if not is_utf8(each)), None):
        raise DataError(f"task {ascii(name)[1:-1]}: the name {ascii(odd)[1:-1]} is no UTF-8; rename the file or folder")
    classes = len(raw.class_names)
    if classes < 2:
        raise DataError(
            f"task {name}: {classes} class(es); a classification task needs at least 2; where not all of them occur, "
            "give their number: the task's `classes`, if it has one, or `--classes` to gauntlet audit and eval"
        )
    _check_part(raw.images, raw.labels, classes, f"task {name}, training part")
    if (raw.test_images is None) != (raw.test_labels is None):
        raise DataError(f"task {name}: test images and test labels must come together")
    if raw.test_images is not None and raw.test_labels is not None:
        _check_part(raw.test_images, raw.test_labels, classes, f"task {name}, test part")
        if raw.test_images.shape[1:] != raw.images.shape[1:]:
            shapes = f"{list(raw.images.shape[1:])} and {list(raw.test_images.shape[1:])}"
            raise DataError(f"task {name}: training and test images differ in [C, H, W]: {shapes}")
    _check_auxiliary(raw, f"task {name}")
    if raw.clean_only:
        if raw.test_images is None and len(raw.images) < 2:
            raise DataError(f"task {name}: one image; the defender and the evaluator need at least one each")
        return
    least = 3 if raw.test_images is None else 2
    counts = torch.bincount(raw.labels, minlength=classes)
    rarest = int(counts.argmin())
    if counts[rarest] < least:
        has = f"class {raw.class_names[rarest]!r} has {int(counts[rarest])} training image(s)"
        raise DataError(f"task {name}: {has}; the splits need at least {least} of each class")


def _check_part(images: Tensor, labels: Tensor, classes: int, where: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(f"{where}: images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}")
    if not images.numel():
        raise DataError(f"{where}: no images")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        got = f"{labels.dtype} {list(labels.shape)}"
        raise DataError(f"{where}: labels must be int64 [{len(images)}], one an image, not {got}")
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(f"{where}: label {int(labels[row])} of image {row} is out of range; legal: 0 to {classes - 1}")


def _check_auxiliary(raw: RawTask, where: str) -> None:
    parts = [(raw.labels, raw.auxiliary)]
    if raw.test_labels is not None:
        parts.append((raw.test_labels, raw.test_auxiliary))
    if len({auxiliary is None for _, auxiliary in parts}) > 1:
        raise DataError(f"{where}: training and test images must both have auxiliary labels, or neither")
    for labels, auxiliary in parts:
        if (auxiliary is None) != (not raw.auxiliary_names):
            raise DataError(f"{where}: auxiliary labels and their names must come together")
        if auxiliary is None:
            continue
        if auxiliary.dtype != torch.int64 or auxiliary.shape != labels.shape:
            got = f"{auxiliary.dtype} {list(auxiliary.shape)}"
            raise DataError(f"{where}: auxiliary labels must be int64 [{len(labels)}], one an image, not {got}")
        wrong = ((auxiliary < -1) | (auxiliary >= len(raw.auxiliary_names))).nonzero()
        if len(wrong):
            row, legal = int(wrong[0]), f"-1 to {len(raw.auxiliary_names) - 1}"
            found = f"auxiliary label {int(auxiliary[row])} of image {row}"
            raise DataError(f"{where}: {found} is out of range; legal: {legal}")


def _select(raw: RawTask, rows: Tensor) -> Split:
    auxiliary = None if raw.auxiliary is None else raw.auxiliary[rows]
    return Split(raw.images[rows], raw.labels[rows], rows, auxiliary)


def _counts(part: Split, classes: int) -> tuple[int, ...]:
    return tuple(torch.bincount(part.labels, minlength=classes).tolist())


def _hash(parts: Sequence[Split], classes: int, auxiliary: int) -> str:
    """Of all that shapes a network or a score: a class that no image has still has an output of its own."""
    state = hashlib.sha256(repr((classes, auxiliary)).encode())
    for part in parts:
        for tensor in part.tensors().values():
            state.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            state.update(tensor.contiguous().numpy().data)
    return state.hexdigest()


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, from whole-number sums, so that they are the same on every machine."""
    if not len(images):
        channels = images.shape[1]
        return (0.0,) * channels, (1.0,) * channels
    means, deviations = [], []
    for channel in range(images.shape[1]):
        histogram = torch.bincount(images[:, channel].flatten(), minlength=256).tolist()
        size = sum(histogram)
        total = sum(level * count for level, count in enumerate(histogram))
        squares = sum(level * level * count for level, count in enumerate(histogram))
        means.append(total / (255 * size))
        deviations.append(math.sqrt(size * squares - total * total) / (255 * size) or 1.0)
    return tuple(means), tuple(deviations)


class PreparedCodec:
    """One safetensors file, from which the tensors are mapped rather than read."""

    _file = "tensors.safetensors"

    def save(self, value: Prepared, folder: Path) -> None:
        """OSError when the disk is full."""
        parts = zip(_SPLITS, (value.training, value.reserve, value.test), strict=True)
        tensors = {
            f"{name}.{field}": tensor.contiguous() for name, part in parts for field, tensor in part.tensors().items()
        }
        metadata = {
            "facts": _FACTS.dump_json(value.facts).decode(),
            "mean": _FLOATS.dump_json(value.mean).decode(),
            "std": _FLOATS.dump_json(value.std).decode(),
        }
        try:
            save_file(tensors, folder / self._file, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    def load(self, folder: Path) -> Prepared:
        """Nothing is copied: an image is read from the disk when it is first looked at."""
        with safe_open(folder / self._file, framework="pt") as file:
            metadata = file.metadata()
            fields: dict[str, dict[str, Tensor]] = {name: {} for name in _SPLITS}
            for key in file.keys():  # noqa: SIM118 -- no mapping
                name, _, field = key.partition(".")
                fields[name][field] = file.get_tensor(key)
            training, reserve, test = (Split(**fields[name]) for name in _SPLITS)
        return Prepared(
            _FACTS.validate_json(metadata["facts"]),
            training,
            reserve,
            test,
            _FLOATS.validate_json(metadata["mean"]),
            _FLOATS.validate_json(metadata["std"]),
        )


class FactsCodec:
    """The facts alone, as JSON, for whoever plans cases without needing an image."""

    _file = "facts.json"

    def save(self, value: TaskFacts, folder: Path) -> None:
        """OSError when the disk is full."""
        (folder / self._file).write_bytes(_FACTS.dump_json(value))

    def load(self, folder: Path) -> TaskFacts:
        """The facts that `save` wrote."""
        return _FACTS.validate_json((folder / self._file).read_bytes())
