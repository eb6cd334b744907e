"""What a step will cost: from the store's own measurements of similar steps, or from the network's arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gauntlet.architecture import Architecture
from gauntlet.case import Case, label
from gauntlet.errors import GauntletError
from gauntlet.facts import TaskFacts
from gauntlet.history import Past, history
from gauntlet.keys import canonical
from gauntlet.measure import machine
from gauntlet.pipeline import Context, Step
from gauntlet.plugin import Kind
from gauntlet.recipe import Recipe
from gauntlet.settings import values
from gauntlet.toolbox import describe

__all__ = ["Basis", "Costs", "StepCost", "forward_flops"]

_FLOPS_A_SECOND = {"cpu": 1.5e11, "cuda": 2e13}
"""What small networks reach in training: an order of magnitude, used only while nothing was measured."""
_SECONDS_A_BATCH = 2e-3
"""What a batch costs whatever the network's size."""


class Basis(StrEnum):
    """Where an estimate comes from, the surest first."""

    CACHED = "cached"
    MEASURED = "measured"
    SIMILAR = "similar"
    ARITHMETIC = "arithmetic"


@dataclass(frozen=True)
class StepCost:
    """Seconds that a step will take by itself; 0 when it is cached.

    training: the shared training inside it, if any, as a name and its seconds: steps that name the same one pay once.
    """

    step: Step
    seconds: float
    basis: Basis
    training: tuple[str, float] | None = None


def forward_flops(architecture: Architecture, facts: TaskFacts) -> int:
    """FLOPs of one image's forward pass, counted on the meta device: nothing is allocated or computed."""
    with torch.device("meta"):
        network = architecture.build(facts.shape, facts.classes).eval()
        image = torch.empty(1, *facts.shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return int(counter.get_total_flops())


@dataclass(frozen=True, eq=False)
class Costs:
    """Estimates for the cases of one session, from what was measured on this machine.

    threads: of the processes that will run them; 0 for as many as this one has.
    """

    context: Context
    facts: Mapping[str, TaskFacts]
    threads: int = 0
    _flops: dict[tuple[str, str], int] = field(default_factory=dict)
    _works: dict[tuple[Kind, str], float] = field(default_factory=dict)

    def of(self, step: Step, case: Case, *, defended: bool = False) -> StepCost:
        """The estimate for one step of a case. defended: a score's, whether it is not the undefended victim's."""
        if not self.context.recompute and self.context.store.contains(step.kind, step.key):
            return StepCost(step, 0.0, Basis.CACHED)
        alike = self._alike(step.kind, case)
        player = self._player(step.kind, case, defended)
        epochs = _epochs(step.kind, case)
        if same := [past for past in alike if past.player == player]:
            # Of two the shorter: a process's first step warms up its libraries, and others use the machine too.
            seconds = statistics.median_low(past.seconds / past.epochs for past in same) * epochs
            return StepCost(step, seconds, Basis.MEASURED, self._training(same, step, case))
        # A victim's training is the unit of every defense's work, so it serves while no defense was measured.
        peers = alike or (self._alike("victim", case) if step.kind == "defended" else [])
        weighed = [(past.whole / past.epochs, self._weight(past.kind, past.player)) for past in peers]
        weight = self._weight(step.kind, player)
        if scaled := [seconds / other for seconds, other in weighed if other]:
            return StepCost(step, statistics.median(scaled) * weight * epochs, Basis.SIMILAR)
        seconds = self._arithmetic(step.kind, case.architecture, self.facts[case.task_name], case.recipe)
        return StepCost(step, seconds * weight * self._pace, Basis.ARITHMETIC)

    def _alike(self, kind: str, case: Case) -> list[Past]:
        where = (kind, self.facts[case.task_name].hash, self.context.device.type, describe(case.architecture))
        return [past for past in self._history if (past.kind, past.task, past.device, past.architecture) == where]

    def _player(self, kind: str, case: Case, defended: bool) -> dict[str, Any]:
        if kind == "victim":
            return describe(case.attack)
        return describe(case.defense) if kind == "defended" or defended else {}

    def _training(self, same: Sequence[Past], step: Step, case: Case) -> tuple[str, float] | None:
        """What steps like `same` trained by content: once for all victims of a seed when it was the same for two."""
        found = [(name, seconds / past.epochs, past) for past in same for name, seconds in past.trainings.items()]
        if not found:
            return None
        victims: dict[str, set[str]] = {}
        for name, _, past in found:
            victims.setdefault(name, set()).add(past.victim)
        each = len(found) / len(same) * statistics.median_low(seconds for _, seconds, _ in found) * case.recipe.epochs
        if max(map(len, victims.values())) < 2:
            return step.key, each
        recipe = canonical(values(case.recipe))
        if not self.context.recompute and any(
            past.seed == step.seed and canonical(past.recipe) == recipe for _, _, past in found
        ):
            return None
        shared = {"defense": describe(case.defense), "architecture": describe(case.architecture), "seed": step.seed}
        return canonical(shared | {"task": self.facts[case.task_name].hash, "recipe": recipe}), each

    def _weight(self, kind: str, player: Mapping[str, Any]) -> float:
        """The player's work in multiples of one victim training; 1 for a score."""
        plugins = {"victim": Kind.ATTACK, "defended": Kind.DEFENSE}
        if kind not in plugins:
            return 1.0
        # A preprocessing defense that acts on the training set trains anew, which its class alone can't say.
        return self._work(plugins[kind], player.get("name", "")) + (1.0 if player.get("apply_fit") else 0.0)

    def _work(self, kind: Kind, name: str) -> float:
        """What the class of that name says; 1 where there is none any more. Asked for every past step of every step."""
        who = (kind, name)
        if who not in self._works:
            cls = self.context.registry.find(kind, name)
            self._works[who] = float(cls.cost) if cls else 1.0
        return self._works[who]

    def _arithmetic(self, kind: str, architecture: Architecture, facts: TaskFacts, recipe: Recipe) -> float:
        who = (label(architecture), facts.name)
        if who not in self._flops:
            self._flops[who] = forward_flops(architecture, facts)
        # A training step costs a forward pass and a backward pass of twice its work.
        images, passes = (2.0 * facts.test_size, 1) if kind == "score" else (recipe.epochs * facts.train_size, 3)
        seconds = images * passes * self._flops[who] / _FLOPS_A_SECOND[self.context.device.type]
        return seconds + math.ceil(images / recipe.batch_size) * _SECONDS_A_BATCH

    @cached_property
    def _pace(self) -> float:
        """The machine's seconds in multiples of the arithmetic's, by its victims of other architectures and tasks."""
        known = {facts.hash: facts for facts in self.facts.values()}
        ratios = []
        for past in self._history:
            weight = self._weight(past.kind, past.player)
            if past.kind == "victim" and past.task in known and weight:
                # What an older version wrote may name what is no longer there.
                with suppress(GauntletError, KeyError, TypeError, ValueError):
                    settings = {name: value for name, value in past.architecture.items() if name != "name"}
                    network = self.context.registry.build(Kind.MODEL, past.architecture["name"], settings)
                    expected = self._arithmetic("victim", network, known[past.task], Recipe(**past.recipe))
                    ratios.append(past.seconds / weight / expected)
        return statistics.median(ratios) if ratios else 1.0

    @cached_property
    def _history(self) -> list[Past]:
        """What this machine did, with as many threads and the same torch where there is any of that."""
        here = machine(self.context.device)
        found = [past for past in history(self.context.store) if past.machine == here]
        threads = self.threads or torch.get_num_threads()
        found = [past for past in found if past.threads == threads] or found
        return [past for past in found if past.torch == str(torch.__version__)] or found


def _epochs(kind: str, case: Case) -> float:
    return 1.0 if kind == "score" else case.recipe.epochs
