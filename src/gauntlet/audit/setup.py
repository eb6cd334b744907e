"""From a request to the cases of an audit: which plug-ins read the files, which classes the triggers aim at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from gauntlet.architecture import Architecture
from gauntlet.attack import Attack
from gauntlet.audit.request import Request, Suspicion
from gauntlet.case import Case
from gauntlet.dataset import facts
from gauntlet.errors import DataError, SettingError, nearest
from gauntlet.expansion import cells
from gauntlet.facts import TaskFacts
from gauntlet.mounting import mount
from gauntlet.options import Options
from gauntlet.paths import suite_folders
from gauntlet.pipeline import Context, tools_for
from gauntlet.plugin import Kind
from gauntlet.progress import Progress
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.session import Session, open_context, settle, timestamp
from gauntlet.settings import build
from gauntlet.suite import Entry, Suite, find_suite, read_suite
from gauntlet.testsets import TestSets
from gauntlet.training import predict

__all__ = ["Audit", "check_fit", "fitting", "open_audit", "task_entry"]

Warn = Callable[[str], None]
Shape: TypeAlias = tuple[int, int, int]
Declared: TypeAlias = tuple[Shape, int] | None


@dataclass(frozen=True, eq=False)
class Audit:
    """found: the triggers with the target of each, by the share of triggered images that it was found by (NaN: given).

    The session's cases are one a defense, the undefended one first.
    """

    request: Request
    session: Session
    found: tuple[tuple[Suspicion, float], ...]

    @property
    def facts(self) -> TaskFacts:
        """Of the clean images."""
        return self.session.facts[self.session.cases[0].task_name]


def open_audit(request: Request, options: Options, warn: Warn, progress: Progress) -> Audit:
    """Read the files' heads, prepare the clean images, find the targets of the triggers. Raises GauntletError."""
    context = open_context(options, warn, progress)
    suite = read_suite(find_suite(request.suite, suite_folders()))
    registry = context.registry
    architecture, weights = _model(request, registry)
    declared = _declared(registry, architecture)
    task = _task(request, registry, declared)
    found = tuple((trigger, float("nan")) for trigger in request.triggers)

    def made(triggers: tuple[Suspicion, ...]) -> list[tuple[Case, TaskFacts]]:
        settings = _handed_over(request, weights, triggers, task.settings.get("size"))
        attack = Entry(name=suite.attacks[0].name, settings=suite.attacks[0].settings | settings)
        return list(_cases(request, suite, options, context, (task, architecture, attack), declared))

    if any(trigger.target is None for trigger in request.triggers):
        progress.step("looking where the triggers lead")
        probe = made(tuple(replace(trigger, target=trigger.target or 0) for trigger in request.triggers))
        found = tuple(_aimed(request.triggers, probe[0][0], context))
    pairs = made(tuple(trigger for trigger, _ in found))
    cases = tuple(case for case, _ in pairs)
    settle(cases)
    # Weights that don't fit must be said before anything is written.
    try:
        mount(cases[0].attack, tools_for(cases[0], cases[0].seeds[0], context))
    except DataError as error:
        raise _hinted(error, request, pairs[0][1]) from None
    return Audit(
        request, Session(context, cases, {case.task_name: known for case, known in pairs}, (), timestamp()), found
    )


def _model(request: Request, registry: Registry) -> tuple[Entry, Path | None]:
    """The architecture, and the file of its weights where that is another one."""
    if not request.model.is_file():
        raise SettingError(f"--model {request.model}: no such file")
    if request.network:
        registry.get(Kind.MODEL, request.network)
        return Entry(name=request.network), request.model
    suffix = request.model.suffix.lower()
    name = _reader(registry, Kind.MODEL, suffix)
    if name is None:
        raise SettingError(
            f"--model {request.model}: files named *{suffix} don't say what network they belong to; give --network "
            "NAME (`gauntlet list models` shows them)"
        )
    settings: dict[str, Any] = {"path": str(request.model)}
    if request.input_range != "0..1":
        settings["input_range"] = request.input_range
    return Entry(name=name, settings=settings), None


def _declared(registry: Registry, architecture: Entry) -> Declared:
    built: Architecture = registry.build(Kind.MODEL, architecture.name, architecture.settings)
    return built.declared()


def _task(request: Request, registry: Registry, declared: Declared) -> Entry:
    classes = request.classes or (declared[1] if declared else 0)
    size = request.input_size or (declared[0][1:] if declared else None)
    if request.resize and size is None:
        raise SettingError(
            f"--resize: {request.model} doesn't say what size its images have; give --input-size as well"
        )
    if request.input_size and not request.resize:
        raise SettingError("--input-size says what --resize makes of the images; give --resize as well")
    entry = task_entry(request.clean, request.test, classes, registry)
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


def task_entry(text: str, test: Path | None, classes: int, registry: Registry) -> Entry:
    """The task of clean images that `text` names: a file, a folder or NAME:PATH; classes: 0 where the data say it."""
    name, colon, path = text.partition(":")
    if not colon or name not in registry.classes(Kind.TASK):
        place = Path(text)
        suffix = "/" if place.is_dir() else place.suffix.lower()
        if not place.exists():
            raise SettingError(f"--clean {place}: no such file or folder")
        found = _reader(registry, Kind.TASK, suffix)
        if found is None:
            raise SettingError(f"--clean {place}: no task reads files named *{suffix}; legal: {_readable(registry)}")
        name, path = found, text
    settings: dict[str, Any] = {"path": path, "clean_only": True}
    if test is not None:
        settings["test"] = str(test)
    if classes:
        settings["classes"] = classes
    return Entry(name=name, settings=settings)


def _reader(registry: Registry, kind: Kind, suffix: str) -> str | None:
    return next((name for name, cls in registry.classes(kind).items() if suffix in cls.reads), None)


def _readable(registry: Registry) -> str:
    known = sorted({suffix for cls in registry.classes(Kind.TASK).values() for suffix in cls.reads})
    return ", ".join("a folder" if suffix == "/" else f"*{suffix}" for suffix in known)


def _handed_over(
    request: Request, weights: Path | None, triggers: tuple[Suspicion, ...], size: list[int] | None
) -> dict[str, Any]:
    settings: dict[str, Any] = {"size": size} if size and request.poisoned else {}
    if weights is not None:
        settings["weights"] = str(weights)
        if request.input_range != "0..1":
            settings["input_range"] = request.input_range
    if request.poisoned:
        settings["poisoned"] = [str(path) for path in request.poisoned]
    if triggers:
        settings["triggers"] = [
            {
                "name": name,
                "picture": str(trigger.picture),
                "x": trigger.x,
                "y": trigger.y,
                "target": trigger.target or 0,
            }
            for name, trigger in zip(_names(triggers), triggers, strict=True)
        ]
    return settings


def _names(triggers: tuple[Suspicion, ...]) -> Iterator[str]:
    """The pictures' names, numbered where two are alike."""
    stems = [trigger.picture.stem for trigger in triggers]
    for place, stem in enumerate(stems):
        yield stem if stems.count(stem) == 1 else f"{stem} {stems[: place + 1].count(stem)}"


def _cases(
    request: Request,
    suite: Suite,
    options: Options,
    context: Context,
    parts: tuple[Entry, Entry, Entry],
    declared: Declared,
) -> Iterator[tuple[Case, TaskFacts]]:
    """The suite's cases on the user's files, and the facts of the clean images."""
    task, architecture, attack = parts
    names = {entry.name for entry in suite.defenses}
    for name in request.only:
        if name not in names:
            raise nearest(name, names, "defense of the audit")
    kept = tuple(entry for entry in suite.defenses if not request.only or entry.name in request.only)
    places = {"tasks": (task,), "architectures": (architecture,), "attacks": (attack,), "defenses": kept}
    found = cells(suite.model_copy(update=places), context.registry)
    source, name = found[0].task.source, Path(task.settings["path"]).name
    known = facts(source, name, context.store, context.load, context.progress.step)
    if declared is not None:
        check_fit(request.clean, known.shape, request.model, declared[0])
    if request.reserve > known.reserve_size:
        raise SettingError(
            f"--reserve {request.reserve}: the defender's part holds {known.reserve_size} images; legal: 1 to "
            f"{known.reserve_size}"
        )
    found[0].architecture.check(known)
    found[0].attack.check(known)
    recipe = build(Recipe, suite.recipe, f"{suite.file}, recipe")
    for cell in found:
        cell.defense.check(known)
        yield (
            Case(
                suite=suite.name,
                task_name=name,
                task=source,
                architecture=cell.architecture,
                attack=cell.attack,
                defense=cell.defense,
                recipe=recipe,
                reserve=request.reserve or known.reserve_size,
                seeds=options.seeds or suite.seeds,
            ),
            known,
        )


def check_fit(data: str, shape: Shape, model: Path, wanted: Shape) -> None:
    """Raise SettingError when images of `shape` aren't those of `wanted` (C, H, W) that the model takes."""
    if shape != wanted:
        given, taken = (f"{height}x{width} with {channels} channels" for channels, height, width in (shape, wanted))
        hint = "; --resize makes them fit" if shape[0] == wanted[0] else ""
        raise SettingError(f"{data}: its images are {given}, and {model} takes {taken}{hint}")


def _hinted(error: DataError, request: Request, known: TaskFacts) -> DataError:
    """What weights that don't fit may mean."""
    if not request.network or request.resize or "has the shape" not in str(error):
        return error
    channels, height, width = known.shape
    return DataError(
        f"{error}, for the images of {request.clean}, {height}x{width} with {channels} channels; if the model takes "
        "another size: --resize --input-size HEIGHTxWIDTH"
    )


def _aimed(triggers: tuple[Suspicion, ...], case: Case, context: Context) -> Iterator[tuple[Suspicion, float]]:
    """Each trigger with its target: the class that the untouched model sends most of the triggered images to, of those
    that it doesn't send there without the trigger.
    """
    tools = tools_for(case, case.seeds[0], context)
    network = mount(case.attack, tools).value.network
    sets = TestSets(tools.data, case.attack, tools.device, tools.memory)
    clean = predict(network, sets.images(None), tools.recipe, tools.device)
    attack: Attack = case.attack
    by_name = {backdoor.name: backdoor for backdoor in attack.backdoors}
    for name, trigger in zip(_names(triggers), triggers, strict=True):
        if trigger.target is not None:
            yield trigger, float("nan")
            continue
        answers = predict(network, sets.images(by_name[name]), tools.recipe, tools.device)
        moved = torch.bincount(answers[answers != clean], minlength=1)
        target = int(moved.argmax()) if moved.sum() else int(answers.mode().values)
        yield replace(trigger, target=target), float((answers == target).float().mean())
