"""The attacker's step: the victim of one (task, architecture, attack, recipe, seed), cached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gauntlet.artifacts import TensorsCodec
from gauntlet.attack import Attack, Mounted
from gauntlet.dataset import TaskData
from gauntlet.errors import GauntletError
from gauntlet.federated.updates import Trajectory
from gauntlet.fingerprint import fingerprint, versions
from gauntlet.guard import Role
from gauntlet.images import ImageSet
from gauntlet.keys import key
from gauntlet.plugin import name_of
from gauntlet.precision import arithmetic
from gauntlet.settings import values
from gauntlet.store import Obtained
from gauntlet.toolbox import EngineTools, Lent, NetworkCodec, describe, state_of
from gauntlet.turns import expected, kept, turn, unwritten
from gauntlet.views import AttackerView, Draws

__all__ = ["attacker_view", "mount", "rounds_of", "trajectory_in", "victim_spec"]

_NUMBERS, _STATES = "rounds.numbers", "rounds.states"


def victim_spec(attack: Attack, tools: EngineTools) -> dict[str, Any]:
    """Everything that the victim depends on."""
    architectures = [tools.architecture, *tools.others.values()]
    modules = [type(part).__module__ for part in (attack, *architectures)]
    return {
        "task": tools.data.facts.hash,
        "architecture": describe(tools.architecture),
        "origins": [part.origin() for part in architectures],
        "attack": describe(attack),
        "recipe": values(tools.recipe),
        "arithmetic": arithmetic(tools.recipe, tools.device),
        "seed": tools.seed,
        "device": tools.device.type,
        "code": fingerprint("gauntlet.mounting", *modules),
        "versions": versions(),
    }


def attacker_view(tools: EngineTools) -> AttackerView:
    """The clean training data, and what the attacker may use."""
    return AttackerView(
        facts=tools.data.facts,
        architecture=tools.architecture,
        recipe=tools.recipe,
        draws=Draws(tools.seed),
        device=tools.device,
        tools=Lent(tools),
        training=tools.data.training.detached(),
    )


def mount(attack: Attack, tools: EngineTools) -> Obtained[Mounted]:
    """The mounted attack, from memory, from the store or trained now. It is shared: nobody may change it."""
    spec = victim_spec(attack, tools)
    name = ("victim", key(spec))
    known: Obtained[Mounted] | None = tools.memory.find(name)
    if known is not None:
        return replace(known, cached=True)

    def make() -> Mounted:
        view, who = attacker_view(tools), f"{name_of(attack)}'s mount"
        written = f"{who} wrote into the clean training images"
        with unwritten(tools.data.training.base, written), turn(Role.ATTACKER, view.draws, "mount"):
            mounted = attack.mount(view)
        return _checked(mounted, tools, who)

    obtained = tools.store.obtain(
        "victim",
        name[1],
        spec,
        _MountedCodec(tools.data, NetworkCodec(tools.architecture, tools.data, tools.device)),
        make,
        recompute=tools.recompute,
        device=str(tools.device),
    )
    tools.memory.put(name, obtained, _tensors(obtained.value, tools.data))
    return obtained


def _checked(mounted: object, tools: EngineTools, who: str) -> Mounted:
    """What the attack left, with the network that will be read from the store; GauntletError when it is no such."""
    left = expected(mounted, Mounted, who)
    count = len(expected(left.training, ImageSet, who, "an ImageSet as `training`"))
    due = f"`poisoned` as bool and `sources` as int64, [{count}] like its training set"
    poisoned, sources = (expected(part, Tensor, who, due) for part in (left.poisoned, left.sources))
    kinds = [(part.dtype, tuple(part.shape)) for part in (poisoned, sources)]
    if kinds != [(torch.bool, (count,)), (torch.int64, (count,))]:
        raise GauntletError(
            f"{who} gave {' and '.join(f'{dtype} {list(shape)}' for dtype, shape in kinds)}; due: {due}"
        )
    return replace(left, network=kept(left.network, tools, who))


def _tensors(mounted: Mounted, data: TaskData) -> list[Tensor]:
    training = mounted.training
    own = [training.base] if training.base is not data.training.base else []
    described = [training.rows, training.labels, training.changed, mounted.poisoned, mounted.sources]
    return [*own, *described, *rounds_of(mounted.trajectory).values(), *mounted.network.state_dict().values()]


def rounds_of(trajectory: Trajectory | None) -> dict[str, Tensor]:
    """A trajectory as named tensors, none without one."""
    return {} if trajectory is None else {_NUMBERS: trajectory.numbers, _STATES: trajectory.states}


def trajectory_in(tensors: Mapping[str, Tensor]) -> Trajectory | None:
    """The trajectory that `rounds_of` wrote among others, if any."""
    return Trajectory(tensors[_NUMBERS], tensors[_STATES]) if _NUMBERS in tensors else None


@dataclass(frozen=True, eq=False)
class _MountedCodec:
    """Weights, and the poisoned set as what differs from the task's own training images."""

    data: TaskData
    networks: NetworkCodec

    def save(self, value: Mounted, folder: Path) -> None:
        training = value.training
        tensors = {
            "rows": training.rows,
            "labels": training.labels,
            "changed": training.changed,
            "poisoned": value.poisoned,
            "sources": value.sources,
            **rounds_of(value.trajectory),
        }
        if training.base is not self.data.training.base:
            tensors["base"] = training.base
        if training.auxiliary is not None:
            tensors["auxiliary"] = training.auxiliary
        network = {f"network.{name}": tensor for name, tensor in state_of(value.network).items()}
        TensorsCodec().save({name: tensor.contiguous() for name, tensor in tensors.items()} | network, folder)

    def load(self, folder: Path) -> Mounted:
        tensors = TensorsCodec().load(folder)
        prefix = "network."
        state = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        own = self.data.training
        base = tensors.get("base", own.base)
        described = (tensors["rows"], tensors["labels"], tensors["changed"], tensors.get("auxiliary"))
        training = ImageSet(base, *described)
        poisoned, sources = tensors["poisoned"].to(torch.bool), tensors["sources"]
        return Mounted(self.networks.adopt(state), training, poisoned, sources, trajectory_in(tensors))
