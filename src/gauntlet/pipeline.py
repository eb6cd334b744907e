"""A case from end to end, each step cached under the hash of everything that it depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from gauntlet.case import Case, label
from gauntlet.compute import deterministic
from gauntlet.dataset import TaskData, prepare
from gauntlet.defending import defend, defended_spec
from gauntlet.errors import WrittenError
from gauntlet.expansion import same
from gauntlet.keys import key
from gauntlet.memory import Memory
from gauntlet.mounting import mount, victim_spec
from gauntlet.plugin import Kind, name_of
from gauntlet.progress import Progress, Silent
from gauntlet.recorder import Recorder, unrecorded, write_scores
from gauntlet.records import Cost, SeedScore
from gauntlet.registry import Registry
from gauntlet.scoring import Score, find_score, score, score_spec
from gauntlet.store import Obtained, Store
from gauntlet.task import LoadContext, TaskSource
from gauntlet.toolbox import EngineTools

__all__ = ["Context", "Outcome", "Step", "run", "steps", "tools_for", "victim_key"]


@dataclass(frozen=True, eq=False)
class Context:
    """What all cases of a session share. datasets: those opened so far, by name. memory: a replaced context's own.

    recorder: where the curves of its trainings go.
    """

    store: Store
    registry: Registry
    device: torch.device
    load: LoadContext
    progress: Progress = field(default_factory=Silent)
    recompute: bool = False
    datasets: dict[str, TaskData] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory, init=False)
    recorder: Recorder = unrecorded
    _sources: dict[str, TaskSource] = field(default_factory=dict, init=False)

    def claim(self, name: str, source: TaskSource) -> None:
        """Raise SettingError when the name stands for the data of another source already."""
        same(self._sources.setdefault(name, source), source, name)

    def data(self, case: Case) -> TaskData:
        """The case's task, prepared once a session; SettingError as `claim`."""
        self.claim(case.task_name, case.task)
        if case.task_name not in self.datasets:
            self.progress.step(f"preparing {case.task_name}")
            self.datasets[case.task_name] = prepare(case.task, case.task_name, self.store, self.load)
        return self.datasets[case.task_name]

    def forget(self, case: Case) -> None:
        """Have the case's task read anew, and what was made of it: its images are not what they were."""
        self.datasets.pop(case.task_name, None)
        self.memory.clear()


@dataclass(frozen=True)
class Outcome:
    """What a case measured, seed by seed, and what each step cost."""

    scores: tuple[SeedScore, ...]
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class Step:
    """One cached step of a case: its kind in the store, its key, and the seed."""

    kind: str
    key: str
    seed: int


def tools_for(case: Case, seed: int, context: Context) -> EngineTools:
    """What the engine lends to the players of one seed of a case."""
    return EngineTools(
        data=context.data(case),
        architecture=case.architecture,
        recipe=case.recipe,
        seed=seed,
        device=context.device,
        store=context.store,
        others={name: context.registry.build(Kind.MODEL, name, {}) for name in case.attack.models()},
        progress=context.progress,
        recompute=context.recompute,
        who=f"{label(case.attack)} on {name_of(case.architecture)}, {label(case.defense)}",
        memory=context.memory,
        recorder=partial(context.recorder, case.id, f"seed {seed}"),
    )


def victim_key(case: Case, seed: int, context: Context) -> str:
    """The store key of one victim of the case; nothing is trained."""
    return key(victim_spec(case.attack, tools_for(case, seed, context)))


def steps(case: Case, context: Context) -> list[Step]:
    """Every step of the case with its key, in the order in which they run; nothing is trained."""
    found = []
    for seed in case.seeds:
        keys = _keys(case, tools_for(case, seed, context))
        found += [Step("victim", keys.victim, seed), Step("score", keys.undefended, seed)]
        if keys.defended:
            found += [Step("defended", keys.defended, seed), Step("score", keys.score, seed)]
    return found


@dataclass(frozen=True)
class _Keys:
    """The store keys of one seed's steps. defended: '' where the victim is left alone; score is then undefended."""

    victim: str
    undefended: str
    defended: str
    score: str


def _keys(case: Case, tools: EngineTools) -> _Keys:
    victim = key(victim_spec(case.attack, tools))
    undefended = key(score_spec(case.attack, None, victim, tools))
    if case.defense.leaves_victim:
        return _Keys(victim, undefended, "", undefended)
    defended = key(defended_spec(case.defense, case.attack, victim, case.reserve, tools))
    return _Keys(victim, undefended, defended, key(score_spec(case.attack, case.defense, defended, tools)))


def run(case: Case, context: Context) -> Outcome:
    """Mount, defend and score every seed.

    Raises NotApplicableError when the defense says nothing about the attack, GauntletError for what a user can mend.
    """
    scores: list[SeedScore] = []
    costs: list[Cost] = []
    for seed in case.seeds:
        tools = tools_for(case, seed, context)
        keys = _keys(case, tools)
        try:
            with deterministic():
                found = _remembered(keys, tools) or _measured(case, keys, tools)
        except WrittenError:
            context.forget(case)
            raise
        scores.append(_seed_score(seed, found["score"].value, found["undefended score"].value, keys.score))
        write_scores(tools.recorder, scores[-1])
        costs += [_cost(step, seed, obtained) for step, obtained in found.items() if keys.defended or step != "score"]
    return Outcome(tuple(scores), tuple(costs))


def _remembered(keys: _Keys, tools: EngineTools) -> dict[str, Obtained[Any]] | None:
    """The steps when all of them are in the store: what was scored needs neither the victim nor the defended network.

    None as soon as one is not there, or a score is not whole.
    """
    if (score := find_score(keys.score, tools)) is None:
        return None
    undefended = score if keys.undefended == keys.score else find_score(keys.undefended, tools)
    found = {
        "victim": tools.store.glance("victim", keys.victim, recompute=tools.recompute),
        "undefended score": undefended,
    }
    if keys.defended:
        found["defense"] = tools.store.glance("defended", keys.defended, recompute=tools.recompute)
    found["score"] = score
    known = {step: obtained for step, obtained in found.items() if obtained is not None}
    return known if len(known) == len(found) else None


def _measured(case: Case, keys: _Keys, tools: EngineTools) -> dict[str, Obtained[Any]]:
    """The steps, each from the store or made now."""
    mounted = mount(case.attack, tools)
    undefended = score(case.attack, mounted.value, mounted.value.network, keys.victim, tools)
    found: dict[str, Obtained[Any]] = {"victim": mounted, "undefended score": undefended}
    if not keys.defended:
        return found | {"score": undefended}
    defended = defend(case.defense, case.attack, mounted, keys.victim, case.reserve, tools)
    scored = score(
        case.attack,
        mounted.value,
        defended.value.network,
        keys.defended,
        tools,
        defense=case.defense,
        defended=defended.value,
        reserve=case.reserve,
    )
    return found | {"defense": defended, "score": scored}


def _seed_score(seed: int, scored: Score, undefended: Score, predictions: str) -> SeedScore:
    return SeedScore(
        **dict(scored.counts),
        seed=seed,
        undefended_clean=undefended.counts.clean,
        undefended_asr=tuple(backdoor.asr for backdoor in undefended.counts.backdoors),
        predictions=predictions,
    )


def _cost(step: str, seed: int, obtained: Obtained[Any]) -> Cost:
    return Cost(
        step=step,
        seed=seed,
        seconds=obtained.seconds,
        peak_memory=obtained.peak_memory,
        device=obtained.device,
        cached=obtained.cached,
    )
