"""The model and the clean images that a request names, as parts of a suite; and whether they fit each other."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from gauntlet.architecture import Architecture
from gauntlet.audit.request import Request
from gauntlet.errors import DataError, SettingError, ShapeError
from gauntlet.facts import TaskFacts
from gauntlet.files import fault
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.settings import typed
from gauntlet.suite import Entry

__all__ = [
    "Declared",
    "check_fit",
    "declared_by",
    "fitting",
    "hinted",
    "model_entry",
    "model_reader",
    "task_entry",
    "task_of",
]

Shape: TypeAlias = tuple[int, int, int]
Declared: TypeAlias = tuple[Shape, int] | None

_NORMALISE = "normalise"


def model_entry(request: Request, registry: Registry) -> tuple[Entry, Path | None]:
    """The architecture, and the file of its weights where that is another one."""
    _require(request.model)
    if request.network:
        registry.get(Kind.MODEL, request.network)
        return Entry(name=request.network), request.model
    name = model_reader(registry, request.model)
    if name is None:
        suffix = request.model.suffix.lower()
        raise SettingError(
            f"{request.model}: files named *{suffix} don't say what network they belong to; give --network "
            "NAME (`gauntlet list models` shows them)"
        )
    settings: dict[str, Any] = {"path": str(request.model)}
    if request.input_range != "0..1":
        settings["input_range"] = request.input_range
    return Entry(name=name, settings=settings), None


def model_reader(registry: Registry, path: Path) -> str | None:
    """The architecture that reads such a file, if there is one; DataError for a description without weights."""
    suffix = path.suffix.lower()
    if any(suffix in cls.describes for cls in registry.classes(Kind.MODEL).values()):
        raise DataError(
            f"{path} describes a network without its weights, so that there is nothing to judge; give the file that "
            "holds both"
        )
    return _reader(registry, Kind.MODEL, suffix)


def declared_by(registry: Registry, architecture: Entry) -> Declared:
    """What the model's file says of its images and classes."""
    built: Architecture = registry.build(Kind.MODEL, architecture.name, architecture.settings)
    return built.declared()


def task_of(request: Request, registry: Registry, declared: Declared) -> Entry:
    """The task of the clean images, resized where the user asks for it."""
    classes = request.classes or (declared[1] if declared else 0)
    size = request.input_size or (declared[0][1:] if declared else None)
    if request.resize and size is None:
        raise SettingError(
            f"--resize: {request.model} doesn't say what size its images have; give --input-size as well"
        )
    if request.input_size and not request.resize:
        raise SettingError("--input-size says what --resize makes of the images; give --resize as well")
    entry = task_entry(request, classes, registry)
    return fitting(entry, registry, size, declared[0][0] if declared else None) if request.resize and size else entry


def fitting(entry: Entry, registry: Registry, size: tuple[int, int], channels: int | None) -> Entry:
    """The task with its images resized and, where they are picture files, with the model's number of channels."""
    known = {field.name for field in dataclasses.fields(registry.get(Kind.TASK, entry.name))}
    if "size" not in known:
        raise SettingError(f"--resize: the task {entry.name} can't resize its images; legal: h5, folder")
    made: dict[str, Any] = {"size": list(size)}
    if channels in (1, 3) and "channels" in known:
        made["channels"] = channels
    return entry.model_copy(update={"settings": entry.settings | made})


def task_entry(request: Request, classes: int, registry: Registry) -> Entry:
    """The task of the clean images: a file, a folder or NAME:PATH; classes: 0 where the data say it."""
    text = request.clean
    name, colon, path = text.partition(":")
    if not colon or name not in registry.classes(Kind.TASK):
        place = Path(text)
        _require(place, folder=True)
        suffix = "/" if place.is_dir() else place.suffix.lower()
        found = _reader(registry, Kind.TASK, suffix)
        if found is None:
            raise SettingError(f"{place}: no task reads files named *{suffix}; legal: {_readable(registry)}")
        name, path = found, text
    elif os.path.lexists(path):  # the task knows best what to say of a path that is none
        _require(Path(path), folder=True)
    cls = registry.get(Kind.TASK, name)
    given = {setting: typed(cls, setting, value) for setting, value in request.data_settings}
    settings: dict[str, Any] = {**given, "path": path, "clean_only": True}
    if request.test is not None:
        _require(request.test, folder=True)
        _require_another(request.test, Path(path))
        settings["test"] = str(request.test)
    if classes:
        settings["classes"] = classes
    return Entry(name=name, settings=settings)


def _require(path: Path, *, folder: bool = False) -> None:
    if why := fault(path, folder=folder):
        raise SettingError(f"{path}: {why}")


def _require_another(test: Path, clean: Path) -> None:
    if os.path.lexists(clean) and test.samefile(clean):
        raise SettingError(
            f"--test {test} is what --clean names, so that defenses would be judged on images that they have seen; "
            "leave --test out, and one half is kept for the evaluator, or give other images"
        )


def _reader(registry: Registry, kind: Kind, suffix: str) -> str | None:
    return next((name for name, cls in registry.classes(kind).items() if suffix in cls.reads), None)


def _readable(registry: Registry) -> str:
    known = sorted({suffix for cls in registry.classes(Kind.TASK).values() for suffix in cls.reads})
    return ", ".join("a folder" if suffix == "/" else f"*{suffix}" for suffix in known)


def check_fit(data: str, shape: Shape, model: Path, wanted: Shape) -> None:
    """Raise SettingError when images of `shape` aren't those of `wanted` (C, H, W) that the model takes."""
    if shape != wanted:
        given, taken = (f"{height}x{width} with {channels} channels" for channels, height, width in (shape, wanted))
        hint = "; --resize makes them fit" if shape[0] == wanted[0] else ""
        raise SettingError(f"{data}: its images are {given}, and {model} takes {taken}{hint}")


def hinted(error: DataError, request: Request, known: TaskFacts, architecture: Architecture) -> DataError:
    """What weights that don't fit may mean: another number of classes or channels, or another size."""
    if not request.network or not isinstance(error, ShapeError) or len(error.found) != len(error.due):
        return error
    outputs, inputs = (*error.found, 0, 0)[:2]
    due_outputs, due_inputs = (*error.due, 0, 0)[:2]
    channels, height, width = known.shape
    depends = partial(_depends, architecture, error.layer, known)
    if outputs != due_outputs and depends(known.shape, known.classes + 1):
        return DataError(f"{error}: {_other_classes(request, known.classes, outputs)}")
    if inputs == due_inputs:
        return error
    if error.layer == _NORMALISE or depends((4 - channels, height, width), known.classes):
        given, taken = (f"{count} channel{'s' * (count > 1)}" for count in (due_inputs, inputs))
        return DataError(f"{error}: the images of {request.clean} have {given}, and the model takes {taken}")
    if not request.resize and depends((channels, 2 * height, 2 * width), known.classes):
        return DataError(
            f"{error}, for the images of {request.clean}, {height}x{width} with {channels} channels; if the model "
            "takes another size: --resize --input-size HEIGHTxWIDTH"
        )
    return error


def _other_classes(request: Request, assumed: int, found: int) -> str:
    if request.classes:
        return f"--classes {assumed} was given, and the model has {found}: --classes {found}"
    where = f"{request.clean} and {request.test}" if request.test else str(request.clean)
    labels = f"the labels of {where} go to {assumed - 1}"
    if found < assumed:
        counted = f"the model has {found} classes, 0 to {found - 1}"
        return f"{labels}, and {counted}: they are another model's, or counted from 1"
    return f"{labels}, so {assumed} classes were assumed; the model has {found}: --classes {found}"


def _depends(architecture: Architecture, layer: str, known: TaskFacts, shape: Shape, classes: int) -> bool:
    """Whether a layer has other weights for other images or classes than the known ones."""
    try:
        with torch.device("meta"):
            bodies = [architecture.build(*each) for each in ((known.shape, known.classes), (shape, classes))]
        sides = [[item.shape for item in body.get_submodule(layer).state_dict().values()] for body in bodies]
    except Exception:  # a plug-in of any kind has just been asked for images that nobody has
        return False
    return sides[0] != sides[1]
