"""What attacker, defender and reference columns may see. The evaluator's view is `gauntlet.scoring`'s alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gauntlet import randomness
from gauntlet.architecture import Architecture
from gauntlet.errors import NotApplicableError
from gauntlet.facts import TaskFacts
from gauntlet.guard import Role, Sealed, acting_as
from gauntlet.images import ImageSet
from gauntlet.network import Network
from gauntlet.objective import Objective
from gauntlet.recipe import Recipe

__all__ = ["AttackerView", "DefenderView", "Draws", "OracleView", "Toolbox"]


class Toolbox(Protocol):
    """What the engine lends to a player: networks and trainings on its own data."""

    def new_network(self, architecture: str = "") -> Network:
        """A freshly initialised network on the device, of the case's architecture or of another one by name."""
        ...

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
        """Train on `images`, from scratch or onward from `network` (changed in place), and return it in eval mode.

        Without a recipe the case's own is taken, without an objective cross-entropy; architecture names another one
        than the case's. shared=True looks the training up in the store by its content (data, recipe, objective,
        seed, purpose), so that cases that need the same one train it once.
        """
        ...


class Draws:
    """A case's random numbers for a player, without its seed: who knows that can repeat the other side's draws, such as
    which samples were poisoned.
    """

    __slots__ = ("_seed",)

    def __init__(self, seed: int) -> None:
        self._seed = Sealed("the case's seed", seed)

    def generator(self, *purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """See `gauntlet.randomness.generator`."""
        return randomness.generator(self._opened(), *purpose, device=device)

    def seeded(self, *purpose: str) -> AbstractContextManager[None]:
        """See `gauntlet.randomness.seeded`."""
        return randomness.seeded(self._opened(), *purpose)

    def _opened(self) -> int:
        with acting_as(Role.ENGINE):
            return self._seed.open()


@dataclass(frozen=True, eq=False)
class _Player:
    facts: TaskFacts
    architecture: Architecture
    recipe: Recipe
    draws: Draws
    device: torch.device
    tools: Toolbox

    def generator(self, *purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one purpose of this player's draws."""
        return self.draws.generator(type(self).__name__, *purpose, device=device)

    def seeded(self, *purpose: str) -> AbstractContextManager[None]:
        """Inside, torch's own global generators (initialisation and dropout read them) are seeded for one purpose."""
        return self.draws.seeded(*purpose)


@dataclass(frozen=True, eq=False)
class AttackerView(_Player):
    """The clean training data (uint8, on the CPU), the victim's architecture and its recipe."""

    training: ImageSet


@dataclass(frozen=True, eq=False)
class DefenderView(_Player):
    """The victim (a copy that may be changed, eval mode), the clean reserve, and the training set as delivered.

    deliver: gives the training set, a copy that is made when it is first asked for; None where a model alone was handed
    over. Neither the attack, nor which samples are poisoned, nor any test image is here.
    """

    victim: Network
    reserve: ImageSet
    deliver: Callable[[], ImageSet] | None
    represent: Callable[[ImageSet], Tensor]

    @property
    def training(self) -> ImageSet:
        """The (poisoned) training set; NotApplicableError when the attacker handed over a trained model only."""
        if self.deliver is None:
            raise NotApplicableError("the attacker hands over a trained model: there is no training set to work on")
        return self.deliver()

    @property
    def training_features(self) -> Tensor:
        """float32 [N, D] on the CPU: the untouched victim's representation (`Network.features_and_logits`) of
        `training`, in its order. NotApplicableError as for `training`. Defenses of one victim share it.
        """
        return self.represent(self.training)


@dataclass(frozen=True, eq=False)
class OracleView(DefenderView):
    """For reference columns only: also the clean training data and which delivered samples are poisoned."""

    clean_training: ImageSet
    poisoned: Tensor | None
