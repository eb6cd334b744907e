"""From a suite to its cases: grids, gates and expected failures resolved, every setting checked, nothing trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any

from gauntlet.architecture import Architecture
from gauntlet.attack import Attack
from gauntlet.case import Case, label
from gauntlet.defense import Aggregation, Defense, require_reserve
from gauntlet.errors import GauntletError, NotApplicableError, SettingError, nearest
from gauntlet.facts import TaskFacts
from gauntlet.federated.federation import Federation
from gauntlet.grids import grid
from gauntlet.plugin import Kind, name_of
from gauntlet.recipe import Recipe
from gauntlet.records import Gate
from gauntlet.registry import Registry
from gauntlet.settings import build, changed, tag, values
from gauntlet.suite import Entry, Subject, Suite
from gauntlet.task import TaskSource

__all__ = ["Cell", "NamedTask", "blocks_for", "cells", "expand", "merged", "named_tasks", "same", "slug", "unmatched"]


def slug(text: str) -> str:
    """A stage's value as a marker: `training-set filter` becomes `training_set_filter`."""
    return text.replace("-", "_").replace(" ", "_")


@dataclass(frozen=True)
class NamedTask:
    """A task. text: as the user wrote it, `parquet:PATH`; name: with the settings, as ids show it."""

    text: str
    name: str
    source: TaskSource


@dataclass(frozen=True)
class Cell:
    """One combination of a suite's lists, before any data set is looked at."""

    task: NamedTask
    architecture: Architecture
    attack: Attack
    defense: Defense

    @cached_property
    def subject(self) -> Subject:
        """What the selectors of gates and expected failures compare with."""
        architecture, attack, defense = label(self.architecture), label(self.attack), label(self.defense)
        return Subject(
            id=f"{self.task.name}-{architecture}-{attack}-{defense}",
            task=(self.task.text, self.task.name),
            architecture=(name_of(self.architecture), architecture),
            attack=(name_of(self.attack), attack),
            family=str(self.attack.family),
            defense=(name_of(self.defense), defense),
            stage=(str(self.defense.stage), slug(self.defense.stage)),
        )


def _plugins(suite: Suite, registry: Registry, kind: Kind, entries: Iterable[Entry]) -> list[Any]:
    """The instances of a list of entries, without repetitions."""
    found: dict[str, Any] = {}
    for entry in entries:
        try:
            cls = registry.get(kind, entry.name)
            for settings in grid(cls, entry.settings):
                instance = registry.build(kind, entry.name, settings)
                same(found.setdefault(label(instance), instance), instance, label(instance))
        except SettingError as error:
            raise SettingError(f"{suite.file}: {error}") from None
    return list(found.values())


def same(first: object, second: object, name: str) -> None:
    """SettingError where two go by one name: ids show of a path its last part, and what differs elsewhere must not
    vanish.
    """
    if first != second:
        raise SettingError(f"two different settings are both called {name}; give their files different names")


def named_tasks(suite: Suite, registry: Registry, chosen: Sequence[str] = ()) -> list[NamedTask]:
    """The suite's tasks, or the chosen ones: texts as the user writes them, or names of the suite's tasks."""
    found: dict[str, NamedTask] = {}
    for entry in suite.tasks:
        try:
            cls = registry.get(Kind.TASK, entry.name.partition(":")[0])
            for settings in grid(cls, entry.settings):
                task = _named(entry.name, registry.task(entry.name, settings))
                same(found.setdefault(task.name, task), task, task.name)
        except SettingError as error:
            if not entry.settings:
                raise
            raise SettingError(f"{suite.file}: {error}") from None
    if not chosen:
        return list(found.values())
    return [found.get(text) or _named(text, registry.task(text)) for text in dict.fromkeys(chosen)]


def _named(text: str, source: TaskSource) -> NamedTask:
    settings = changed(source)
    path = settings.pop("path", None)
    if path is not None and ":" not in text:
        text = f"{text}:{path}"
    return NamedTask(text, tag(text, settings), source)


def blocks_for(suite: Suite, tasks: Sequence[str] = ()) -> list[tuple[Suite, Sequence[str]]]:
    """The suite's cross-products, each with those of `tasks` that take the place of its own.

    A part that brings a task of its own is made for it and takes no other; the suite's own lists don't take that one.
    """
    if not tasks:
        return [(block, ()) for block in suite.blocks]
    usual = _texts(suite.tasks)
    own = [set[str](), *(_texts(part.tasks or ()) - usual for part in suite.part)]
    claimed = set[str]().union(*own)
    chosen = [[task for task in tasks if (task in mine if mine else task not in claimed)] for mine in own]
    return [(block, theirs) for block, theirs in zip(suite.blocks, chosen, strict=True) if theirs]


def _texts(entries: Iterable[Entry]) -> set[str]:
    return {text for entry in entries for text in (entry.name, entry.text)}


def cells(suite: Suite, registry: Registry, tasks: Sequence[str] = ()) -> list[Cell]:
    """The cross-product: cases of one victim side by side, its undefended one first (added if the suite lacks it).

    tasks: those to take in the place of the suite's.
    """
    architectures = _plugins(suite, registry, Kind.MODEL, suite.architectures)
    attacks = _plugins(suite, registry, Kind.ATTACK, suite.attacks)
    defenses = _plugins(suite, registry, Kind.DEFENSE, [Entry(name="none"), *suite.defenses])
    return [
        Cell(*parts)
        for parts in itertools.product(named_tasks(suite, registry, tasks), architectures, attacks, defenses)
    ]


def unmatched(suite: Suite, subjects: Sequence[Subject]) -> list[str]:
    """One sentence for each gate and each expected failure that takes no case at all."""
    rules = [("gate", rule) for rule in suite.gate] + [("expected failure", rule) for rule in suite.expected_failure]
    return [
        f"suite {suite.name}: the {what} with {rule.described()} matches no case"
        for what, rule in rules
        if not any(rule.matches(subject) for subject in subjects)
    ]


def _gate(suite: Suite, subject: Subject) -> Gate:
    thresholds: dict[str, float | bool] = {}
    for rule in suite.gate:
        if rule.matches(subject):
            thresholds |= rule.thresholds()
    least, most = thresholds.get("min_asr", 0), thresholds.get("max_asr", 1)
    if least > most:
        raise SettingError(
            f"{suite.file}: {subject.id} would need an ASR of at least {least:g} (min_asr) and at most {most:g} "
            "(max_asr): gates that match one case add up; let each select its own cases"
        )
    return _gate_of(tuple(thresholds.items()))


@cache
def _gate_of(thresholds: tuple[tuple[str, float | bool], ...]) -> Gate:
    return Gate.model_validate(dict(thresholds))


def _recipe(suite: Suite, cell: Cell, forced: Mapping[str, object]) -> Recipe:
    """The suite's recipe with what is said of the task, then of the architecture, then on the command line."""
    task, architecture = cell.task, name_of(cell.architecture)
    overrides: dict[str, object] = {}
    for name in (task.text, task.name, architecture):
        overrides |= suite.recipe_for.get(name, {})
    who = f"{suite.file}, recipe of {architecture} on {task.name}"
    return build(Recipe, {**suite.recipe, **overrides, **forced}, who)


def _check_names(suite: Suite, registry: Registry, chosen: Sequence[str]) -> None:
    """A recipe for a name that nothing has would silently change nothing."""
    if not suite.recipe_for:
        return
    own = {task.name: task for block in suite.blocks for task in named_tasks(block, registry)}
    named = [*own.values(), *(task for task in named_tasks(suite, registry, chosen))]
    known = [*registry.classes(Kind.MODEL), *registry.classes(Kind.TASK)]
    known += [text for task in named for text in (task.text, task.name)]
    for name in suite.recipe_for:
        if name not in known:
            raise SettingError(f"{suite.file}: [recipe_for]: {nearest(name, known, 'architecture or task')}")


def _reserve(suite: Suite, facts: TaskFacts) -> int:
    wanted = suite.reserve
    size = round(wanted * facts.train_size) if isinstance(wanted, float) else wanted
    if size > facts.reserve_size:
        share = f" ({wanted:g} of {facts.train_size:,})" if isinstance(wanted, float) else ""
        raise SettingError(
            f"{suite.file}: reserve = {size:,}{share}: {facts.name} sets only {facts.reserve_size:,} clean images "
            f"aside for the defender; legal: 0 to {facts.reserve_size:,}"
        )
    return size


def _check(case: Case, facts: TaskFacts, registry: Registry) -> None:
    try:
        case.architecture.check(facts)
        for name in case.attack.models():
            registry.build(Kind.MODEL, name, {}).check(facts)
        case.attack.check(facts)
        case.attack.check_architecture(case.architecture)
        case.defense.check(facts)
        require_reserve(case.defense, label(case.defense), case.reserve)
        if isinstance(case.defense, Aggregation) and isinstance(case.attack, Federation):
            case.defense.check_updates(case.attack.sampled)
    except SettingError as error:
        raise SettingError(f"{case.id}: {error}") from None
    except GauntletError:
        raise
    except NotApplicableError as reason:
        raise SettingError(
            f"{case.id}: check raised NotApplicableError: {reason}; raise it where the case runs, which makes the case "
            "not applicable, or leave the case out of the suite"
        ) from None
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingError(f"{case.id}: check raised {text}") from error


def expand(
    suite: Suite,
    registry: Registry,
    facts_of: Callable[[TaskSource, str], TaskFacts],
    *,
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    recipe: Mapping[str, object] | None = None,
) -> list[Case]:
    """The suite's cases, its parts' after its own, no two of one id.

    `tasks` and `seeds`, where given, take the place of the suite's own; `recipe` overrides its.

    facts_of: a source and its name as the user wrote it to the task's facts; called once per task.
    Raises SettingError, with the case, the setting and the legal range, for the first setting that is impossible.
    """
    _check_names(suite, registry, tasks)
    found: dict[str, Case] = {}
    for number, (block, chosen) in enumerate(blocks_for(suite, tasks)):
        for case in _expand_block(block, registry, facts_of, chosen, seeds, recipe or {}):
            first = found.get(case.id)
            if first is not None and (different := _difference(first, case)):
                raise SettingError(
                    f"{suite.file}: two parts mean different cases by {case.id}: {different}, which ids don't show; "
                    "legal: the same in both parts, or a suite of its own for one of them"
                )
            found[case.id] = replace(first or case, parts=(*(first.parts if first else ()), number))
    return list(found.values())


def _difference(first: Case, second: Case) -> str:
    """`reserve = 100 and 50`: what tells two cases of one id apart; empty for one case.

    Where the defense leaves the victim as it is, nobody holds the reserve: two parts may share an undefended row.
    """
    if first.defense.leaves_victim:
        second = replace(second, reserve=first.reserve)
    names = [field.name for field in fields(Case) if field.name != "parts"]
    pairs = {name: (vars(first)[name], vars(second)[name]) for name in names}
    recipes = [values(recipe) for recipe in pairs.pop("recipe")]
    pairs |= {f"recipe.{name}": (recipes[0][name], recipes[1][name]) for name in recipes[0]}
    return ", ".join(f"{name} = {one} and {other}" for name, (one, other) in pairs.items() if one != other)


def _expand_block(
    block: Suite,
    registry: Registry,
    facts_of: Callable[[TaskSource, str], TaskFacts],
    tasks: Sequence[str],
    seeds: Sequence[int],
    recipe: Mapping[str, object],
) -> Iterator[Case]:
    named = named_tasks(block, registry, tasks)
    facts = {task.name: facts_of(task.source, task.name) for task in named}
    reserves = {name: _reserve(block, known) for name, known in facts.items()}
    for cell in cells(block, registry, tasks):
        subject = cell.subject
        expected = next((rule.reason for rule in block.expected_failure if rule.matches(subject)), "")
        case = Case(
            suite=block.name,
            task_name=cell.task.name,
            task=cell.task.source,
            architecture=cell.architecture,
            attack=cell.attack,
            defense=cell.defense,
            recipe=_recipe(block, cell, recipe),
            reserve=reserves[cell.task.name],
            seeds=tuple(seeds or block.seeds),
            gate=_gate(block, subject),
            min_undefended_asr=block.thresholds.min_undefended_asr,
            collapse=block.thresholds.collapse,
            expected=expected,
        )
        _check(case, facts[cell.task.name], registry)
        yield case


def merged(suites: Iterable[Sequence[Case]]) -> list[Case]:
    """The cases of several suites; SettingError when two suites mean different cases by one id."""
    found: dict[str, Case] = {}
    for case in itertools.chain.from_iterable(suites):
        first = found.setdefault(case.id, case)
        if first.suite != case.suite:
            raise SettingError(
                f"{case.id} stands in suite {first.suite} and in suite {case.suite}; run them one after the other"
            )
    return list(found.values())
