"""Magnitude pruning: the smallest weights of a dense layer go, more and more of them, while the network is tuned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gauntlet.defense import Repair
from gauntlet.errors import NotApplicableError, SettingError
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.settings import Count, Positive, Probability
from gauntlet.views import DefenderView

from .fine_tuning import budgeted

__all__ = ["MagnitudePruning", "decayed"]


@defense
@dataclass(frozen=True)
class MagnitudePruning(Repair):
    """Fine-tunes with the reserve while a growing share of a dense layer's weights, the smallest, is held at 0.

    Zhu & Gupta 2017, arXiv:1710.01878, as an entry of CSAW-HackML-2020 used it. The share grows from `initial` to
    `final` by polynomial decay of power 3, in `updates` equal parts of the tuning, the last of which keeps `final` to
    the end; biases stay. layer: a module path inside the network's body; by default its last hidden dense layer, which
    is the last but one that the module lists. learning_rate, epochs and batch_size are as in `fine_tuning`, by its SGD.
    Differs from the paper: the optimizer starts afresh at each update, and a weight that is gone never comes back.
    """

    needs_reserve: ClassVar[bool] = True
    cost: ClassVar[float] = 0.5

    learning_rate: Positive = 0.01
    epochs: Positive = 50.0
    batch_size: Count = 256
    initial: Probability = 0.5
    final: Probability = 0.8
    updates: Count = 10
    layer: str = ""

    def __post_init__(self) -> None:
        if self.initial > self.final:
            raise ValueError(f"initial = {self.initial:g} is above final = {self.final:g}; the share only grows")

    def repair(self, view: DefenderView) -> Network:
        weight = self._layer(view.victim).weight
        recipe = budgeted(view.recipe, self.epochs / self.updates, self.batch_size, self.learning_rate)
        for update in range(self.updates):
            kept = _largest(weight.detach(), decayed(self.initial, self.final, update, self.updates))
            with torch.no_grad():
                weight.mul_(kept)
            with _held(weight, kept):
                view.tools.train(view.reserve, "magnitude_pruning", str(update), recipe=recipe, network=view.victim)
        return view.victim

    def _layer(self, network: Network) -> nn.Linear:
        layers = {name: part for name, part in network.body.named_modules() if isinstance(part, nn.Linear)}
        if not self.layer and len(layers) < 2:
            raise NotApplicableError("magnitude_pruning prunes the last hidden dense layer, and this network has none")
        path = self.layer or list(layers)[-2]
        if path not in layers:
            raise SettingError(
                f"magnitude_pruning: layer = {path!r} is no dense layer of this network; "
                f"legal: {', '.join(layers) or 'none'}"
            )
        return layers[path]


def decayed(initial: float, final: float, update: int, updates: int) -> float:
    """The share that is pruned at an update from 0 to updates - 1: polynomial decay, power 3; `final` if it is the only
    one.
    """
    progress = update / (updates - 1) if updates > 1 else 1.0
    return final + (initial - final) * (1 - progress) ** 3


def _largest(weight: Tensor, pruned: float) -> Tensor:
    """float of weight's shape: 0 for the round(pruned * size) smallest values, 1 for the others."""
    kept = torch.ones_like(weight, memory_format=torch.contiguous_format).flatten()
    order = weight.abs().flatten().argsort(stable=True)
    kept[order[: round(pruned * len(order))]] = 0
    return kept.view_as(weight)


@contextmanager
def _held(weight: Tensor, kept: Tensor) -> Iterator[None]:
    """Keep what is 0 in `kept` at 0 while the layer trains: its gradient is 0, and so is an SGD step."""
    if not weight.requires_grad:
        yield
        return
    handle = weight.register_hook(lambda gradient: gradient * kept)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        handle.remove()
