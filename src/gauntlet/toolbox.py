"""What the engine lends to attackers and defenders: networks, and trainings on their own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gauntlet import randomness
from gauntlet.architecture import Architecture
from gauntlet.artifacts import TensorsCodec, is_turned
from gauntlet.assembly import assemble, mould, wrap
from gauntlet.checkpoints import Checkpoint
from gauntlet.dataset import TaskData
from gauntlet.errors import GauntletError
from gauntlet.files import content
from gauntlet.fingerprint import fingerprint, versions
from gauntlet.guard import Role, Sealed, acting_as
from gauntlet.images import ImageSet
from gauntlet.keys import key
from gauntlet.making import being_made
from gauntlet.memory import Memory
from gauntlet.network import Network
from gauntlet.objective import CrossEntropy, Objective
from gauntlet.plugin import name_of
from gauntlet.precision import arithmetic
from gauntlet.progress import Progress
from gauntlet.recipe import Recipe
from gauntlet.recorder import Recorder, unrecorded
from gauntlet.settings import paths_in, values
from gauntlet.store import Store
from gauntlet.training import fit

__all__ = ["EngineTools", "Lent", "NetworkCodec", "describe", "state_of"]

_VICTIMS = ("training",)
"""The purpose of the victim's own training, and of those that are compared with it."""


def describe(plugin: object) -> dict[str, Any]:
    """A plug-in as part of a key: its name, all its settings, and the content of the files that they name."""
    described = {"name": name_of(plugin), **values(plugin)}
    contents = {str(path): content(path) for path in paths_in(plugin)}
    return described | ({"contents": contents} if contents else {})


@dataclass(frozen=True, eq=False)
class NetworkCodec:
    """A network's weights as safetensors; loading builds it without initialising it first."""

    architecture: Architecture
    data: TaskData
    device: torch.device
    tensors: TensorsCodec = field(default_factory=TensorsCodec)

    def save(self, value: Network, folder: Path) -> None:
        """Write the state."""
        self.tensors.save(state_of(value), folder)

    def load(self, folder: Path) -> Network:
        """A network in eval mode on the device."""
        return self.adopt(self.tensors.load(folder))

    def adopt(self, state: Mapping[str, Tensor]) -> Network:
        """A network in eval mode on the device, made of the given tensors; on the CPU of these very tensors."""
        form = mould(self.architecture, self.data.facts, self.data.mean, self.data.std)
        network = assemble(form, state)
        return network if _is_placed(state, self.device) else network.place(self.device)

    def restore(self, state: Mapping[str, Tensor]) -> Network:
        """The same with copies of the given tensors, which changing the network leaves alone."""
        return self.adopt({name: value.clone() for name, value in state.items()})


def _is_placed(state: Mapping[str, Tensor], device: torch.device) -> bool:
    """Whether `Network.place` would change nothing, at the price of a millisecond for a large network."""
    return device.type == "cpu" and all(is_turned(item) for item in state.values() if item.ndim == 4)


def state_of(network: Network) -> dict[str, Tensor]:
    """The network's state on the CPU, sharing its memory there."""
    return {name: value.detach().cpu() for name, value in network.state_dict().items()}


class Lent:
    """What a player holds of the tools: two calls; the store, the task's data and the attack's name behind them are
    sealed.
    """

    __slots__ = ("new_network", "train")

    def __init__(self, tools: EngineTools) -> None:
        sealed = Sealed("the engine's tools", tools)

        def opened() -> EngineTools:
            # Opened alone: what an objective does within a training is the player's own doing.
            with acting_as(Role.ENGINE):
                return sealed.open()

        # Bound methods would tell whose they are.
        self.new_network: Callable[..., Network] = lambda *given, **more: opened().new_network(*given, **more)
        self.train: Callable[..., Network] = lambda *given, **more: opened().train(*given, **more)


@dataclass(frozen=True, eq=False)
class EngineTools:
    """Implements `gauntlet.views.Toolbox` for one player of one case.

    others: the further architectures that the attack has declared, by name. who: for progress, `badnets on le_net`.
    memory: what the engine shares between the cases of a session. recorder: where the curves of its trainings go.
    """

    data: TaskData
    architecture: Architecture
    recipe: Recipe
    seed: int
    device: torch.device
    store: Store
    others: Mapping[str, Architecture]
    progress: Progress
    recompute: bool
    who: str
    memory: Memory = field(default_factory=Memory)
    recorder: Recorder = unrecorded

    def new_network(self, architecture: str = "") -> Network:
        """A freshly initialised network; the same seed gives the same weights."""
        return self._initialised(architecture, _VICTIMS)

    def train(
        self,
        images: ImageSet,
        *purpose: str,
        recipe: Recipe | None = None,
        objective: Objective | None = None,
        network: Network | None = None,
        architecture: str = "",
        shared: bool = False,
    ) -> Network:
        """See `gauntlet.views.Toolbox.train`."""
        recipe = recipe or self.recipe
        objective = objective or CrossEntropy(recipe.label_smoothing)

        def make() -> Network:
            trained = network or self._initialised(architecture, purpose)
            self.progress.step(f"{' '.join(purpose)}: {self.who}, seed {self.seed}")
            with self.recorder(*purpose) as curves:
                fit(
                    trained,
                    images,
                    recipe,
                    seed=self.seed,
                    purpose=purpose,
                    device=self.device,
                    objective=objective,
                    progress=self.progress,
                    checkpoint=self._checkpoint(purpose, recipe, objective),
                    curves=curves,
                )
            return trained

        spec = objective.spec()
        if not shared or spec is None or network is not None:
            return make()
        chosen = self._architecture(architecture)
        identity = self._identity(images, purpose, recipe, spec, chosen, type(objective).__module__)
        codec = NetworkCodec(chosen, self.data, self.device)
        obtained = self.store.obtain(
            "training", key(identity), identity, codec, make, recompute=self.recompute, device=str(self.device)
        )
        return obtained.value

    def _checkpoint(self, purpose: tuple[str, ...], recipe: Recipe, objective: Objective) -> Checkpoint | None:
        """Of a training on the way to an entry of the store, whose key covers all that the training depends on."""
        work = being_made()
        if work is None or not objective.resumable():
            return None
        spec = {"purpose": " ".join(purpose), "seed": self.seed, "recipe": values(recipe)}
        return Checkpoint(self.store, work, spec, self.who, str(self.device), self.recompute)

    def _initialised(self, architecture: str, purpose: tuple[str, ...]) -> Network:
        """The purpose counts, so that what an attacker trains for himself is no twin of the victim."""
        with randomness.seeded(self.seed, "initialisation", *(() if purpose == _VICTIMS else purpose)):
            network = wrap(self._architecture(architecture), self.data.facts, self.data.mean, self.data.std)
        return network.place(self.device)

    def _architecture(self, name: str) -> Architecture:
        if not name:
            return self.architecture
        if name not in self.others:
            known = "".join(f", {other}" for other in sorted(self.others))
            raise GauntletError(
                f"{name!r} is no architecture that may be trained here; legal: the case's own{known}; an attack "
                "declares others by `models`, a defense has none"
            )
        return self.others[name]

    def _identity(
        self,
        images: ImageSet,
        purpose: tuple[str, ...],
        recipe: Recipe,
        objective: dict[str, Any],
        architecture: Architecture,
        module: str,
    ) -> dict[str, Any]:
        return {
            "images": images.digest(),
            "normalisation": [self.data.mean, self.data.std],
            "architecture": describe(architecture),
            "origin": architecture.origin(),
            "recipe": values(recipe),
            "arithmetic": arithmetic(recipe, self.device),
            "objective": objective,
            "purpose": list(purpose),
            "seed": self.seed,
            "device": self.device.type,
            "code": fingerprint("gauntlet.toolbox", module, type(architecture).__module__),
            "versions": versions(),
        }
