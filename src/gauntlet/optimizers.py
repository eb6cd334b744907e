"""A recipe's optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gauntlet.muon import Muon
from gauntlet.recipe import Recipe

__all__ = ["Optimizers", "rate_factor"]


class Optimizers:
    """The recipe's optimizer, or two for Muon, as one; each group of parameters keeps its own peak rate.

    parameters: the network's, in order. further: those of an objective's own modules; under Muon they get Adam.
    """

    def __init__(
        self, recipe: Recipe, parameters: Sequence[nn.Parameter], further: Sequence[nn.Parameter] = ()
    ) -> None:
        self._recipe = recipe
        muon = recipe.optimizer == "muon"
        self._all = _muon(recipe, parameters, further) if muon else [_plain(recipe, [*parameters, *further])]
        self._groups = self._all_groups()
        self._peaks = [group["lr"] for group in self._groups]
        self.parameters: list[nn.Parameter] = [each for group in self._groups for each in group["params"]]

    def schedule(self, progress: float) -> None:
        """Set the learning rates of the step at `progress` in [0, 1)."""
        factor = rate_factor(self._recipe, progress)
        for group, peak in zip(self._groups, self._peaks, strict=True):
            group["lr"] = peak * factor

    def clear(self) -> None:
        """Drop the gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for optimizer in self._all:
            optimizer.step()

    @property
    def rates(self) -> list[float]:
        """The learning rate of each group of parameters, as of the last step."""
        return [float(group["lr"]) for group in self._groups]

    def state(self) -> Iterator[tuple[str, Tensor | float | None]]:
        """What the optimizers remember, by `position in self.parameters.name`."""
        first = 0
        for optimizer in self._all:
            described = optimizer.state_dict()
            for position, remembered in described["state"].items():
                for name, value in remembered.items():
                    yield f"{first + position}.{name}", value
            first += sum(len(group["params"]) for group in described["param_groups"])

    def adopt(self, state: Mapping[str, Tensor | float | None]) -> None:
        """Remember what `state` told."""
        first = 0
        for optimizer in self._all:
            described = optimizer.state_dict()
            count = sum(len(group["params"]) for group in described["param_groups"])
            found: dict[int, dict[str, Tensor | float | None]] = {}
            for full, value in state.items():
                position, _, name = full.partition(".")
                if first <= int(position) < first + count:
                    found.setdefault(int(position) - first, {})[name] = value
            optimizer.load_state_dict({**described, "state": found})
            first += count
        # Loading replaces the groups, and the schedule is to set those that are stepped by.
        self._groups = self._all_groups()

    def _all_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._all for group in optimizer.param_groups]


def _plain(recipe: Recipe, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer in ("adam", "amsgrad"):
        amsgrad = recipe.optimizer == "amsgrad"
        return torch.optim.Adam(parameters, rate, weight_decay=decay, amsgrad=amsgrad, fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, recipe.momentum, weight_decay=decay, fused=True)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, weight_decay=decay, momentum=0.0)
    return torch.optim.Adagrad(parameters, rate, weight_decay=decay)


def _muon(
    recipe: Recipe, parameters: Sequence[nn.Parameter], further: Sequence[nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """Muon for the weights of hidden layers; Adam for biases, normalisation, the last layer and `further`."""
    last = next((parameter for parameter in reversed(parameters) if parameter.ndim > 1), None)
    hidden = [parameter for parameter in parameters if parameter.ndim > 1 and parameter is not last]
    rest = [parameter for parameter in parameters if parameter.ndim < 2 or parameter is last] + [*further]
    found: list[torch.optim.Optimizer] = []
    if hidden:
        found.append(Muon(hidden, recipe.learning_rate, recipe.momentum, recipe.weight_decay))
    if rest:
        found.append(torch.optim.Adam(rest, recipe.rest_rate, weight_decay=0.0, fused=True))
    return found


def rate_factor(recipe: Recipe, progress: float) -> float:
    """The share of the learning rate at `progress` in [0, 1)."""
    if recipe.schedule == "linear":
        return 1 - progress
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if recipe.schedule == "one_cycle":
        warm = 0.3
        if progress < warm:
            return max(0.04, progress / warm)
        return (1 + math.cos(math.pi * (progress - warm) / (1 - warm))) / 2
    if recipe.schedule == "multistep":
        passed = sum(milestone <= progress for milestone in recipe.milestones)
        return float(recipe.gamma**passed)
    return 1.0
