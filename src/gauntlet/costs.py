"""What a step will cost: from the store's own measurements of similar steps, or from the network's arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gauntlet import entry
from gauntlet.architecture import Architecture
from gauntlet.case import Case, label
from gauntlet.entry import DamagedError, Manifest
from gauntlet.facts import TaskFacts
from gauntlet.pipeline import Context, Step
from gauntlet.plugin import Kind
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
    """Seconds that a step will take; 0 when it is cached."""

    step: Step
    seconds: float
    basis: Basis


def forward_flops(architecture: Architecture, facts: TaskFacts) -> int:
    """FLOPs of one image's forward pass, counted on the meta device: nothing is allocated or computed."""
    with torch.device("meta"):
        network = architecture.build(facts.shape, facts.classes).eval()
        image = torch.empty(1, *facts.shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class _Past:
    """A step that was measured. player: the attack or the defense with its settings; none for a score."""

    kind: str
    task: str
    device: str
    architecture: Mapping[str, Any]
    player: Mapping[str, Any]
    epochs: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Costs:
    """Estimates for the cases of one session."""

    context: Context
    facts: Mapping[str, TaskFacts]
    _flops: dict[tuple[str, str], int] = field(default_factory=dict)

    def of(self, step: Step, case: Case) -> StepCost:
        """The estimate for one step of a case."""
        if not self.context.recompute and self.context.store.contains(step.kind, step.key):
            return StepCost(step, 0.0, Basis.CACHED)
        alike = self._alike(step.kind, case)
        player = {"victim": describe(case.attack), "defended": describe(case.defense)}.get(step.kind, {})
        same = [past.seconds / past.epochs for past in alike if past.player == player]
        if same:
            return StepCost(step, statistics.median(same) * _epochs(step.kind, case), Basis.MEASURED)
        weight = self._weight(step.kind, player)
        # A victim's training is the unit of every defense's work, so it serves while no defense was measured.
        peers = alike or (self._alike("victim", case) if step.kind == "defended" else [])
        weighed = [(past.seconds / past.epochs, self._weight(past.kind, past.player)) for past in peers]
        scaled = [seconds / other for seconds, other in weighed if other]
        if scaled:
            return StepCost(step, statistics.median(scaled) * weight * _epochs(step.kind, case), Basis.SIMILAR)
        return StepCost(step, self._arithmetic(step.kind, case) * weight, Basis.ARITHMETIC)

    def _alike(self, kind: str, case: Case) -> list[_Past]:
        where = (kind, self.facts[case.task_name].hash, self.context.device.type, describe(case.architecture))
        return [past for past in self._history if (past.kind, past.task, past.device, past.architecture) == where]

    def _weight(self, kind: str, player: Mapping[str, Any]) -> float:
        """The player's work in multiples of one victim training; 1 for a score."""
        plugins = {"victim": Kind.ATTACK, "defended": Kind.DEFENSE}
        if kind not in plugins:
            return 1.0
        cls = self.context.registry.classes(plugins[kind]).get(player.get("name", ""))
        # A preprocessing defense that acts on the training set trains anew, which its class alone can't say.
        return (float(cls.cost) if cls else 1.0) + (1.0 if player.get("apply_fit") else 0.0)

    def _arithmetic(self, kind: str, case: Case) -> float:
        facts = self.facts[case.task_name]
        who = (label(case.architecture), case.task_name)
        if who not in self._flops:
            self._flops[who] = forward_flops(case.architecture, facts)
        # A training step costs a forward pass and a backward pass of twice its work.
        images, passes = (2.0 * facts.test_size, 1) if kind == "score" else (case.recipe.epochs * facts.train_size, 3)
        seconds = images * passes * self._flops[who] / _FLOPS_A_SECOND[self.context.device.type]
        return seconds + math.ceil(images / case.recipe.batch_size) * _SECONDS_A_BATCH

    @cached_property
    def _history(self) -> list[_Past]:
        manifests = list(self._manifests())
        victims = {one.key: one for one in manifests if one.kind == "victim"}
        defended = {one.key: one for one in manifests if one.kind == "defended"}
        found = []
        for one in manifests:
            network = one.spec.get("network", one.key)
            victim = victims.get(defended[network].spec["victim"] if network in defended else network)
            if victim is not None:
                found.append(_past(one, victim))
        return found

    def _manifests(self) -> Iterator[Manifest]:
        store = self.context.store
        for listed in store.entries():
            if listed.kind in ("victim", "defended", "score"):
                with suppress(DamagedError):
                    folder = store.root / listed.kind / listed.key[:2] / listed.key
                    yield entry.read(folder, listed.kind, listed.key)


def _past(one: Manifest, victim: Manifest) -> _Past:
    return _Past(
        kind=one.kind,
        task=victim.spec["task"],
        device=victim.spec["device"],
        architecture=victim.spec["architecture"],
        player={"victim": one.spec.get("attack"), "defended": one.spec.get("defense")}.get(one.kind) or {},
        epochs=victim.spec["recipe"]["epochs"] if one.kind != "score" else 1.0,
        seconds=one.seconds,
    )


def _epochs(kind: str, case: Case) -> float:
    return 1.0 if kind == "score" else case.recipe.epochs
