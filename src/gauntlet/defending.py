"""The defender's step: the defended network of one victim, cached."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gauntlet import randomness
from gauntlet.artifacts import TensorsCodec
from gauntlet.attack import Attack, Mounted
from gauntlet.defense import Defense, Filter, InTraining, Preprocessing, Reference, Repair
from gauntlet.errors import GauntletError
from gauntlet.facts import TaskFacts
from gauntlet.fingerprint import fingerprint, versions
from gauntlet.guard import Role, acting_as
from gauntlet.images import ImageSet, chunks, to_float, to_uint8
from gauntlet.keys import key
from gauntlet.network import Network
from gauntlet.store import Obtained
from gauntlet.toolbox import EngineTools, Lent, NetworkCodec, describe, state_of
from gauntlet.views import DefenderView, OracleView

__all__ = ["defend", "defended_spec", "defender_view", "preprocessed"]

PART = 4096
"""Images that a preprocessing defense gets at once."""


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
) -> Obtained[Network]:
    """The defended network, from the store or made now; NotApplicableError when the pair says nothing."""
    spec = defended_spec(defense, attack, victim_key, reserve, tools)
    codec = _DefendedCodec(NetworkCodec(tools.architecture, tools.data, tools.device), mounted.value.network)

    def make() -> Network:
        view = defender_view(defense, attack, mounted.value, codec.copy_of_victim(), reserve, tools)
        with acting_as(Role.DEFENDER):
            return _answer(defense, view)

    return tools.store.obtain(
        "defended", key(spec), spec, codec, make, recompute=tools.recompute, device=str(tools.device)
    )


def preprocessed(defense: Defense, images: Tensor, seed: int, which: str, device: torch.device) -> Tensor:
    """uint8 test images as the defended network gets to see them. which: names the set, for the random draws."""
    if not isinstance(defense, Preprocessing) or not defense.apply_predict:
        return images
    generator = randomness.generator(seed, "preprocessing", which, device=device)
    with acting_as(Role.DEFENDER):
        parts = [
            to_uint8(defense.transform(to_float(images[part].to(device)), generator)).cpu()
            for part in chunks(len(images), PART)
        ]
    return torch.cat(parts)


def defender_view(
    defense: Defense, attack: Attack, mounted: Mounted, victim: Network, reserve: int, tools: EngineTools
) -> DefenderView:
    """What the defender may see; an OracleView for a reference column."""
    delivered = mounted.training.materialised() if attack.delivers_data else None
    shown: dict[str, Any] = {
        "facts": _facts_for_defender(tools.data.facts, delivered),
        "architecture": tools.architecture,
        "recipe": tools.recipe,
        "seed": tools.seed,
        "device": tools.device,
        "tools": Lent(tools),
        "victim": victim,
        # A base of its own: the pool behind it holds more images than the budget, and serves other cases too.
        "reserve": tools.data.reserve(reserve).materialised(),
        "delivered": delivered,
    }
    if isinstance(defense, Reference):
        return OracleView(**shown, clean_training=tools.data.training, poisoned=mounted.poisoned)
    return DefenderView(**shown)


def _facts_for_defender(facts: TaskFacts, delivered: ImageSet | None) -> TaskFacts:
    """The class counts of the delivered set: those of the clean one beside it would name the target and the poison."""
    labels = delivered.labels if delivered is not None else torch.empty(0, dtype=torch.int64)
    return replace(facts, train_counts=tuple(torch.bincount(labels, minlength=facts.classes).tolist()))


def _answer(defense: Defense, view: DefenderView) -> Network:
    """Run the one method of the defense's stage."""
    if isinstance(defense, Reference) and isinstance(view, OracleView):
        return defense.rebuild(view)
    if isinstance(defense, Filter):
        return _retrain(defense.keep(view), view)
    if isinstance(defense, InTraining):
        return defense.train(view)
    if isinstance(defense, Repair):
        return defense.repair(view)
    if isinstance(defense, Preprocessing):
        if not defense.apply_fit:
            return view.victim
        training = defense.transform_training(view.training, view.generator("preprocessing"))
        return view.tools.train(training, "training", shared=True)
    raise GauntletError(f"{type(defense).__name__} derives none of the bases in gauntlet.defense")


def _retrain(keep: Tensor, view: DefenderView) -> Network:
    if keep.dtype != torch.bool or keep.shape != view.training.labels.shape:
        raise GauntletError(f"the filter gave {keep.dtype} {tuple(keep.shape)}; a bool for each training sample is due")
    if not keep.any():
        raise GauntletError("the filter removed the whole training set")
    return view.tools.train(view.training.subset(keep), "training", shared=True)


@dataclass(frozen=True, eq=False)
class _DefendedCodec:
    """The defended weights; nothing when they are the victim's own."""

    networks: NetworkCodec
    victim: Network

    def copy_of_victim(self) -> Network:
        return self.networks.restore(state_of(self.victim))

    def save(self, value: Network, folder: Path) -> None:
        before, after = state_of(self.victim), state_of(value)
        same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        TensorsCodec().save({} if same else after, folder)

    def load(self, folder: Path) -> Network:
        state = TensorsCodec().load(folder)
        return self.networks.restore(state) if state else self.copy_of_victim()
