"""A case from end to end, each step cached under the hash of everything that it depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from gauntlet.case import Case, label
from gauntlet.compute import deterministic
from gauntlet.dataset import TaskData, prepare
from gauntlet.defending import defend, defended_spec
from gauntlet.defense import Defense
from gauntlet.keys import key
from gauntlet.mounting import mount, victim_spec
from gauntlet.plugin import Kind, name_of
from gauntlet.progress import Progress, Silent
from gauntlet.records import Cost, SeedScore
from gauntlet.registry import Registry
from gauntlet.scoring import Score, score, score_spec
from gauntlet.store import Obtained, Store
from gauntlet.task import LoadContext
from gauntlet.toolbox import EngineTools

__all__ = ["Context", "Outcome", "Step", "run", "steps", "tools_for", "victim_key"]


@dataclass(frozen=True, eq=False)
class Context:
    """What all cases of a session share. datasets: those opened so far, by name."""

    store: Store
    registry: Registry
    device: torch.device
    load: LoadContext
    progress: Progress = field(default_factory=Silent)
    recompute: bool = False
    datasets: dict[str, TaskData] = field(default_factory=dict)

    def data(self, case: Case) -> TaskData:
        """The case's task, prepared once a session."""
        if case.task_name not in self.datasets:
            self.progress.step(f"preparing {case.task_name}")
            self.datasets[case.task_name] = prepare(case.task, case.task_name, self.store, self.load)
        return self.datasets[case.task_name]


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
    )


def victim_key(case: Case, seed: int, context: Context) -> str:
    """The store key of one victim of the case; nothing is trained."""
    return key(victim_spec(case.attack, tools_for(case, seed, context)))


def steps(case: Case, context: Context) -> list[Step]:
    """Every step of the case with its key, in the order in which they run; nothing is trained."""
    found = []
    for seed in case.seeds:
        tools = tools_for(case, seed, context)
        victim = key(victim_spec(case.attack, tools))
        found += [
            Step("victim", victim, seed),
            Step("score", _score_key(case, None, victim, tools), seed),
        ]
        if case.defense.leaves_victim:
            continue
        defended = key(defended_spec(case.defense, case.attack, victim, case.reserve, tools))
        found += [
            Step("defended", defended, seed),
            Step("score", _score_key(case, case.defense, defended, tools), seed),
        ]
    return found


def run(case: Case, context: Context) -> Outcome:
    """Mount, defend and score every seed.

    Raises NotApplicableError when the defense says nothing about the attack, GauntletError for what a user can mend.
    """
    scores: list[SeedScore] = []
    costs: list[Cost] = []
    for seed in case.seeds:
        with deterministic():
            one, spent = _run_seed(case, seed, context)
        scores.append(one)
        costs += spent
    return Outcome(tuple(scores), tuple(costs))


def _run_seed(case: Case, seed: int, context: Context) -> tuple[SeedScore, list[Cost]]:
    tools = tools_for(case, seed, context)
    victim = key(victim_spec(case.attack, tools))
    mounted = mount(case.attack, tools)
    undefended = score(case.attack, None, mounted.value, mounted.value.network, victim, tools)
    costs = [_cost("victim", seed, mounted), _cost("undefended score", seed, undefended)]
    if case.defense.leaves_victim:
        return _seed_score(seed, undefended.value, undefended.value, _score_key(case, None, victim, tools)), costs
    defended_key = key(defended_spec(case.defense, case.attack, victim, case.reserve, tools))
    defended = defend(case.defense, case.attack, mounted, victim, case.reserve, tools)
    scored = score(case.attack, case.defense, mounted.value, defended.value, defended_key, tools)
    costs += [_cost("defense", seed, defended), _cost("score", seed, scored)]
    predictions = _score_key(case, case.defense, defended_key, tools)
    return _seed_score(seed, scored.value, undefended.value, predictions), costs


def _score_key(case: Case, defense: Defense | None, network_key: str, tools: EngineTools) -> str:
    return key(score_spec(case.attack, defense, network_key, tools))


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
