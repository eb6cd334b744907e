"""The model and the clean images that a request names, as parts of a suite; and whether they fit each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeAlias

from gauntlet.architecture import Architecture
from gauntlet.audit.request import Request
from gauntlet.errors import DataError, SettingError
from gauntlet.facts import TaskFacts
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


def model_entry(request: Request, registry: Registry) -> tuple[Entry, Path | None]:
    """The architecture, and the file of its weights where that is another one."""
    if not request.model.is_file():
        raise SettingError(f"{request.model}: no such file")
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
        suffix = "/" if place.is_dir() else place.suffix.lower()
        if not place.exists():
            raise SettingError(f"{place}: no such file or folder")
        found = _reader(registry, Kind.TASK, suffix)
        if found is None:
            raise SettingError(f"{place}: no task reads files named *{suffix}; legal: {_readable(registry)}")
        name, path = found, text
    cls = registry.get(Kind.TASK, name)
    given = {setting: typed(cls, setting, value) for setting, value in request.data_settings}
    settings: dict[str, Any] = {**given, "path": path, "clean_only": True}
    if request.test is not None:
        settings["test"] = str(request.test)
    if classes:
        settings["classes"] = classes
    return Entry(name=name, settings=settings)


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


def hinted(error: DataError, request: Request, known: TaskFacts) -> DataError:
    """What weights that don't fit may mean."""
    if not request.network or request.resize or "has the shape" not in str(error):
        return error
    channels, height, width = known.shape
    return DataError(
        f"{error}, for the images of {request.clean}, {height}x{width} with {channels} channels; if the model takes "
        "another size: --resize --input-size HEIGHTxWIDTH"
    )
