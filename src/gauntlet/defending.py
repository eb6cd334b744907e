"""The defender's step: the defended network of one victim, cached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gauntlet import randomness
from gauntlet.artifacts import TensorsCodec
from gauntlet.attack import Attack, Mounted
from gauntlet.defense import (
    Aggregation,
    Defense,
    Filter,
    InputDetector,
    Inspection,
    InTraining,
    ModelVerdict,
    Preprocessing,
    Reference,
    Repair,
    require_reserve,
)
from gauntlet.errors import GauntletError, NotApplicableError
from gauntlet.facts import TaskFacts
from gauntlet.federated.federation import Federation
from gauntlet.federated.updates import Trajectory
from gauntlet.fingerprint import fingerprint, versions
from gauntlet.guard import Role, Sealed, acting_as
from gauntlet.images import ImageSet
from gauntlet.keys import key
from gauntlet.mounting import attacker_view, rounds_of, trajectory_in, victim_spec
from gauntlet.network import Network
from gauntlet.plugin import name_of
from gauntlet.store import Obtained
from gauntlet.toolbox import EngineTools, Lent, NetworkCodec, describe, state_of
from gauntlet.training import features
from gauntlet.turns import expected, kept, turn, unwritten
from gauntlet.views import DefenderView, Draws, OracleView

__all__ = ["Defended", "defend", "defended_spec", "defender_view"]

_NETWORK = "network."


@dataclass(frozen=True, eq=False)
class Defended:
    """What a defense leaves behind: the network to deploy, and beside it what its stage answers.

    keep: bool [len(training)], a filter's. inspection: a model verdict's, without a network of its own. trajectory: the
    rounds of the federation that an aggregation served.
    """

    network: Network
    keep: Tensor | None = None
    inspection: Inspection | None = None
    trajectory: Trajectory | None = None


def defended_spec(
    defense: Defense, attack: Attack, victim_key: str, reserve: int, tools: EngineTools
) -> dict[str, Any]:
    """Everything that the defended network depends on. The attack enters through its victim alone."""
    return {
        "victim": victim_key,
        "delivers_data": attack.delivers_data,
        "defense": describe(defense),
        "reserve": reserve,
        "seed": tools.seed,
        "device": tools.device.type,
        "code": fingerprint("gauntlet.defending", type(defense).__module__),
        "versions": versions(),
    }


def defend(
    defense: Defense, attack: Attack, mounted: Obtained[Mounted], victim_key: str, reserve: int, tools: EngineTools
) -> Obtained[Defended]:
    """The defended network, from the store or made now; NotApplicableError when the pair says nothing."""
    spec = defended_spec(defense, attack, victim_key, reserve, tools)
    codec = _DefendedCodec(NetworkCodec(tools.architecture, tools.data, tools.device), mounted.value.network)

    def make() -> Defended:
        require_reserve(defense, name_of(defense), reserve)
        if isinstance(defense, Aggregation):
            return _federated(defense, attack, tools)
        view = defender_view(defense, attack, mounted.value, codec.copy_of_victim(), reserve, tools)
        with turn(Role.DEFENDER, view.draws, "answer"):
            answered = _answer(defense, view, codec.copy_of_victim, mounted.value.training)
        return replace(answered, network=kept(answered.network, tools, name_of(defense)))

    return tools.store.obtain(
        "defended", key(spec), spec, codec, make, recompute=tools.recompute, device=str(tools.device)
    )


def defender_view(
    defense: Defense, attack: Attack, mounted: Mounted, victim: Network, reserve: int, tools: EngineTools
) -> DefenderView:
    """What the defender may see; an OracleView for a reference column."""
    delivery = _Delivery(mounted.training) if attack.delivers_data else None
    shown: dict[str, Any] = {
        "facts": _facts_for_defender(tools.data.facts, mounted.training.labels if attack.delivers_data else None),
        "architecture": tools.architecture,
        "recipe": tools.recipe,
        "draws": Draws(tools.seed),
        "device": tools.device,
        # The attack's other architectures would name it.
        "tools": Lent(replace(tools, others={})),
        "victim": victim,
        # A base of its own: the pool behind it holds more images than the budget, and serves other cases too.
        "reserve": tools.data.reserve(reserve).without_auxiliary().materialised(),
        "deliver": delivery,
        "represent": _represented(mounted, delivery, key(victim_spec(attack, tools)), tools),
    }
    if isinstance(defense, Reference):
        return OracleView(**shown, clean_training=tools.data.training.detached(), poisoned=mounted.poisoned)
    return DefenderView(**shown)


class _Delivery:
    """The training set as the attacker hands it over: a copy, made when a defense first asks for it, as few do."""

    __slots__ = ("_copy", "_source")

    def __init__(self, training: ImageSet) -> None:
        # The second labels are the attacker's knowledge: the data's maker annotated classes. Which images were changed
        # is what the copy doesn't tell.
        self._source = Sealed("which training images were changed", training.without_auxiliary())
        self._copy: ImageSet | None = None

    def __call__(self) -> ImageSet:
        if self._copy is None:
            with acting_as(Role.ENGINE):
                self._copy = self._source.open().materialised()
        return self._copy

    def made(self, images: ImageSet) -> bool:
        """Whether `images` is the copy."""
        return images is self._copy


def _represented(
    mounted: Mounted, delivery: _Delivery | None, victim_key: str, tools: EngineTools
) -> Callable[[ImageSet], Tensor]:
    """The untouched victim's features of any images; defenses of one victim share those of the delivered set."""
    network, training, recipe = mounted.network, mounted.training, tools.recipe
    device, memory = tools.device, tools.memory

    def represent(images: ImageSet) -> Tensor:
        if delivery is None or not delivery.made(images):
            return features(network, images, recipe, device)
        with acting_as(Role.ENGINE):
            # Of the engine's own set: a defense may have changed what it was delivered.
            made = memory.get(
                ("features", victim_key), lambda: features(network, training, recipe, device), lambda made: [made]
            )
        return made.clone()

    return represent


def _facts_for_defender(facts: TaskFacts, delivered: Tensor | None) -> TaskFacts:
    """The class counts of the delivered labels: the clean ones beside them would name the target and the poison."""
    labels = delivered if delivered is not None else torch.empty(0, dtype=torch.int64)
    return replace(facts, train_counts=tuple(torch.bincount(labels, minlength=facts.classes).tolist()))


def _answer(defense: Defense, view: DefenderView, fresh: Callable[[], Network], delivered: ImageSet) -> Defended:
    """Run the one method of the defense's stage.

    fresh: the victim as it was, delivered: the training set as it was, since the view's may be changed.
    """
    name = name_of(defense)
    if isinstance(defense, Filter):
        count = len(view.training)
        keep = expected(defense.keep(view), Tensor, f"{name}'s keep", f"a bool tensor [{count}]").cpu()
        return Defended(_retrain(keep, delivered.without_auxiliary(), view, name), keep=keep)
    if isinstance(defense, ModelVerdict):
        inspection = _checked(expected(defense.inspect(view), Inspection, f"{name}'s inspect"), view.facts, name)
        network = fresh() if inspection.network is None else inspection.network
        return Defended(network, inspection=replace(inspection, network=None))
    return Defended(_network(defense, view))


def _federated(defense: Aggregation, attack: Attack, tools: EngineTools) -> Defended:
    """The attack's federation, run anew with the defense as its server: users and server take their turns."""
    if not isinstance(attack, Federation):
        raise NotApplicableError("the attack is no federation: there are no updates to aggregate")
    defense.check_updates(attack.sampled)
    who, draws = f"{name_of(defense)}'s aggregate", Draws(tools.seed)

    def aggregate(updates: Tensor, rate: float, number: int) -> Tensor:
        size = updates.shape[1]
        due = f"a finite float32 tensor [{size}]"
        generator = randomness.generator(tools.seed, "aggregation", f"round {number}")
        with turn(Role.DEFENDER, draws, "aggregation", f"round {number}"):
            step = expected(defense.aggregate(updates, rate, generator), Tensor, who, due)
        if step.dtype != torch.float32 or step.shape != (size,) or not step.isfinite().all():
            raise GauntletError(f"{who} gave {step.dtype} {list(step.shape)} or values that are not finite; due: {due}")
        return step

    # The purpose of the attack's own turn: without a defense the same federation.
    written = f"{name_of(attack)}'s federate wrote into the clean training images"
    with unwritten(tools.data.training.base, written), turn(Role.ATTACKER, draws, "mount"):
        mounted = attack.federate(attacker_view(tools), aggregate)
    return Defended(kept(mounted.network, tools, name_of(attack)), trajectory=mounted.trajectory)


def _network(defense: Defense, view: DefenderView) -> Network:
    name = name_of(defense)
    if isinstance(defense, Reference) and isinstance(view, OracleView):
        return expected(defense.rebuild(view), Network, f"{name}'s rebuild")
    if isinstance(defense, InTraining):
        return expected(defense.train(view), Network, f"{name}'s train")
    if isinstance(defense, Repair):
        return expected(defense.repair(view), Network, f"{name}'s repair")
    if isinstance(defense, InputDetector):
        return view.victim
    if isinstance(defense, Preprocessing):
        if not defense.apply_fit:
            return view.victim
        transformed = defense.transform_training(view.training, view.generator("preprocessing"))
        training = expected(transformed, ImageSet, f"{name}'s transform_training")
        return view.tools.train(training, "training", shared=True)
    raise GauntletError(f"{name}: {type(defense).__name__} derives none of the stages' bases in gauntlet.defense")


def _checked(inspection: Inspection, facts: TaskFacts, name: str) -> Inspection:
    """Raise GauntletError for a verdict that doesn't speak of the task's classes."""
    due = f"a finite float tensor [{facts.classes}]"
    anomaly = expected(inspection.anomaly, Tensor, f"{name}'s inspect as `anomaly`", due)
    if anomaly.shape != (facts.classes,) or not anomaly.isfinite().all():
        raise GauntletError(
            f"{name}'s anomaly has the shape {list(anomaly.shape)}, or is not finite; due: one finite number a class"
        )
    due = "a tuple of classes, as ints"
    for suspect in expected(inspection.suspects, tuple, f"{name}'s inspect as `suspects`", due):
        expected(suspect, int, f"{name}'s inspect among `suspects`", due)
    if not set(inspection.suspects) <= set(range(facts.classes)):
        raise GauntletError(f"{name} names the classes {inspection.suspects}; legal: 0 to {facts.classes - 1}")
    return inspection


def _retrain(keep: Tensor, delivered: ImageSet, view: DefenderView, name: str) -> Network:
    if keep.dtype != torch.bool or keep.shape != delivered.labels.shape:
        raise GauntletError(f"{name}'s keep gave {keep.dtype} {list(keep.shape)}; due: a bool for each training sample")
    if not keep.any():
        raise GauntletError(f"{name} removed the whole training set")
    return view.tools.train(delivered.subset(keep), "training", shared=True)


@dataclass(frozen=True, eq=False)
class _DefendedCodec:
    """The answers, and the defended weights; no weights when they are the victim's own."""

    networks: NetworkCodec
    victim: Network

    def copy_of_victim(self) -> Network:
        return self.networks.restore(state_of(self.victim))

    def save(self, value: Defended, folder: Path) -> None:
        before, after = state_of(self.victim), state_of(value.network)
        same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        tensors = {} if same else {f"{_NETWORK}{name}": tensor for name, tensor in after.items()}
        if value.keep is not None:
            tensors["keep"] = value.keep
        if value.inspection is not None:
            found = value.inspection
            answers = {"anomaly": found.anomaly, "triggers": found.triggers, "masks": found.masks}
            tensors["suspects"] = torch.tensor(found.suspects, dtype=torch.int64)
            tensors |= {name: tensor.detach().cpu() for name, tensor in answers.items() if tensor is not None}
        tensors |= rounds_of(value.trajectory)
        TensorsCodec().save(tensors, folder)

    def load(self, folder: Path) -> Defended:
        tensors = TensorsCodec().load(folder)
        state = {name[len(_NETWORK) :]: value for name, value in tensors.items() if name.startswith(_NETWORK)}
        network = self.networks.restore(state) if state else self.copy_of_victim()
        inspection = None
        if "anomaly" in tensors:
            suspects = tuple(tensors["suspects"].tolist())
            inspection = Inspection(
                tensors["anomaly"], suspects, triggers=tensors.get("triggers"), masks=tensors.get("masks")
            )
        return Defended(network, tensors.get("keep"), inspection, trajectory_in(tensors))
