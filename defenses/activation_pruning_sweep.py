"""Activation pruning: the least active channels go until held-out accuracy has dropped by so many points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gauntlet.defense import Repair
from gauntlet.maths.pruning import activations, prune, sweep
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.settings import Fraction
from gauntlet.views import DefenderView

from .fine_pruning import chosen_convolution, halves

__all__ = ["ActivationPruningSweep"]


@defense
@dataclass(frozen=True)
class ActivationPruningSweep(Repair):
    """Prunes channels, least active first, to the first at which held-out accuracy is lower by at least `drop`.

    An entry of CSAW-HackML-2020, after Liu et al. 2018, arXiv:1805.12185; nothing is trained. A grid over drop = [0.02,
    0.04, 0.10, 0.30] gives the contest's curve. One half of the reserve ranks the channels of `layer`, a module path
    inside the network's body (by default its last convolution), by their mean activation; the other half, stratified,
    measures accuracy. At least one channel stays. Differs from the entry: it ranked by what comes after pooling, and
    ranked and measured on the same images.
    """

    needs_reserve: ClassVar[bool] = True

    drop: Fraction = 0.1
    layer: str = ""

    @property
    def least_reserve(self) -> int:
        """One half ranks channels, the other measures accuracy."""
        return 2

    def repair(self, view: DefenderView) -> Network:
        layer = chosen_convolution("activation_pruning_sweep", view.victim, self.layer)
        prune(layer, self._channels(view))
        return view.victim

    def _channels(self, view: DefenderView) -> Tensor:
        """The channels to prune."""
        ranking, held_out = halves(view.reserve, view.generator("held out"))
        order = activations(view.victim, ranking.images(), self.layer).argsort(stable=True)
        predicted = sweep(view.victim, held_out.images(), order, range(len(order)), self.layer)
        correct = (predicted == held_out.labels.cpu()).sum(1)
        # Rounded first: 0.07 of 100 images are 7, and 7.000000000000001 in floating point.
        dropped = correct[0] - correct >= round(self.drop * len(held_out), 6)
        return order[: int((~dropped).long().cumprod(0).sum())] if dropped.any() else order[:-1]
