"""From a request to the cases of an audit: which plug-ins read the files, which classes the triggers aim at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gauntlet.attack import Attack, Family
from gauntlet.audit.answers import check_answers
from gauntlet.audit.parts import Declared, check_fit, declared_by, hinted, model_entry, task_of
from gauntlet.audit.request import Request, Suspicion
from gauntlet.case import Case
from gauntlet.dataset import facts
from gauntlet.errors import DataError, SettingError, nearest
from gauntlet.expansion import cells
from gauntlet.facts import TaskFacts
from gauntlet.images import ImageSet, chunks
from gauntlet.mounting import mount
from gauntlet.network import Network
from gauntlet.options import Options
from gauntlet.paths import suite_folders
from gauntlet.pipeline import Context, tools_for
from gauntlet.plugin import Kind
from gauntlet.progress import Progress
from gauntlet.recipe import Recipe
from gauntlet.records import Counts
from gauntlet.registry import Registry
from gauntlet.session import Session, open_context, settle, timestamp
from gauntlet.settings import build
from gauntlet.suite import Entry, Suite, find_suite, read_suite
from gauntlet.testsets import stamp
from gauntlet.training import logits, predict

__all__ = ["Audit", "open_audit"]

Warn = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Audit:
    """found: the triggers with the target of each, by the share of triggered images that it was found by (NaN: given).
    clean: the clean images, the defender's and the evaluator's, whose label the untouched model gives.

    The session's cases are one a defense, the undefended one first.
    """

    request: Request
    session: Session
    found: tuple[tuple[Suspicion, float], ...]
    clean: Counts

    @property
    def facts(self) -> TaskFacts:
        """Of the clean images."""
        return self.session.facts[self.session.cases[0].task_name]


def open_audit(request: Request, options: Options, warn: Warn, progress: Progress) -> Audit:
    """Read the files, prepare the clean images, see what the model answers, find the targets of the triggers.

    Raises GauntletError: what is wrong with the files must be said before anything is written.
    """
    context = open_context(options, warn, progress)
    suite = read_suite(find_suite(request.suite, suite_folders()))
    registry = context.registry
    mounted = _mounted(suite, registry)
    architecture, weights = model_entry(request, registry)
    declared = declared_by(registry, architecture)
    task = task_of(request, registry, declared)
    found = tuple((trigger, float("nan")) for trigger in request.triggers)

    def made(triggers: tuple[Suspicion, ...]) -> list[tuple[Case, TaskFacts]]:
        settings = _handed_over(request, weights, triggers, task.settings.get("size"))
        attack = Entry(name=mounted.name, settings=mounted.settings | settings)
        return list(_cases(request, suite, options, context, (task, architecture, attack), declared))

    pairs = made(tuple(replace(trigger, target=trigger.target or 0) for trigger in request.triggers))
    settle([case for case, _ in pairs])
    for doubt in pairs[0][1].doubts:
        warn(doubt)
    progress.step("looking what the model answers")
    network = _handed(*pairs[0], request, context)
    clean = _clean(network, pairs[0][0], context)
    if request.test is not None and (copies := _copies(pairs[0][0], context)):
        warn(
            f"{request.test}: {copies.hits:,} of {copies.n:,} images stand in {request.clean} as well, so that "
            "defenses are judged on images that they have seen; give others"
        )
    if any(trigger.target is None for trigger in request.triggers):
        progress.step("looking where the triggers lead")
        found = tuple(_aimed(request.triggers, network, pairs[0][0], context))
        pairs = made(tuple(trigger for trigger, _ in found))
    cases = tuple(case for case, _ in pairs)
    session = Session(context, cases, {case.task_name: known for case, known in pairs}, (), timestamp())
    return Audit(request, session, found, clean)


def _mounted(suite: Suite, registry: Registry) -> Entry:
    """The suite's attack, which the files become; SettingError where it would train a victim of its own."""
    attack = suite.attacks[0]
    known = registry.find(Kind.ATTACK, attack.name)
    if known is not None and known.family is not Family.HANDED_OVER:
        raise SettingError(
            f"{suite.file}: its attack {attack.name} trains a victim and takes no model that somebody handed over; "
            "legal: audit, or a suite of your own whose attack is handed_over"
        )
    return attack


def _handed(case: Case, known: TaskFacts, request: Request, context: Context) -> Network:
    """The untouched model."""
    try:
        return mount(case.attack, tools_for(case, case.seeds[0], context)).value.network
    except DataError as error:
        raise hinted(error, request, known, case.architecture) from None


def _clean(network: Network, case: Case, context: Context) -> Counts:
    """How many clean images the model names rightly. DataError where it answers with what is no number."""
    tools = tools_for(case, case.seeds[0], context)
    parts = [part for part in (tools.data.reserve_pool, tools.data.test.open()) if len(part)]
    answers = torch.cat([logits(network, part.images(), tools.recipe, tools.device) for part in parts])
    check_answers(answers, "clean images")
    right = answers.argmax(1) == torch.cat([part.labels for part in parts])
    return Counts(hits=int(right.sum()), n=len(right))


def _copies(case: Case, context: Context) -> Counts | None:
    """How many of the evaluator's images the defender has as well, byte by byte; None where there are none."""
    data = tools_for(case, case.seeds[0], context).data
    known, shown = (list(_digests(part)) for part in (data.reserve_pool, data.test.open()))
    hits = sum(map(frozenset(known).__contains__, shown))
    return Counts(hits=hits, n=len(shown)) if hits else None


def _digests(part: ImageSet) -> Iterator[bytes]:
    for rows in chunks(len(part), 1024):
        for image in part.images(rows).numpy():
            yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()


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
    found[0].attack.check_architecture(found[0].architecture)
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


def _aimed(
    triggers: tuple[Suspicion, ...], network: Network, case: Case, context: Context
) -> Iterator[tuple[Suspicion, float]]:
    """Each trigger with its target: the class that the untouched model sends most of the triggered images to, of those
    that it doesn't send there without the trigger. On the defender's images: a target that was chosen on those that it
    is measured on would succeed too often.
    """
    tools = tools_for(case, case.seeds[0], context)
    images = tools.data.reserve_pool.images()
    clean = predict(network, images, tools.recipe, tools.device)
    attack: Attack = case.attack
    by_name = {backdoor.name: backdoor for backdoor in attack.backdoors}
    for name, trigger in zip(_names(triggers), triggers, strict=True):
        if trigger.target is not None:
            yield trigger, float("nan")
            continue
        answers = predict(network, stamp(by_name[name], images), tools.recipe, tools.device)
        moved = torch.bincount(answers[answers != clean], minlength=1)
        target = int(moved.argmax()) if moved.sum() else int(answers.mode().values)
        yield replace(trigger, target=target), float((answers == target).float().mean())
