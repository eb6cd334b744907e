"""Fine-pruning: channels that clean images leave dormant are pruned, then the rest is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.errors import NotApplicableError, SettingError
from gauntlet.images import ImageSet
from gauntlet.maths.pruning import activations, hold_pruned, last_convolution, prune, sweep
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.settings import Probability
from gauntlet.views import DefenderView

from .fine_tuning import FineTuning

__all__ = ["FinePruning"]


@defense
@dataclass(frozen=True)
class FinePruning(FineTuning):
    """Prunes the least active channels of the last convolution, then fine-tunes as `fine_tuning` does.

    Liu, Dolan-Gavitt and Garg 2018, arXiv:1805.12185. One half of the reserve ranks the channels by their mean
    activation (`gauntlet.maths.pruning.activations`); the other half, stratified, says how many may go: one by one
    until its accuracy has lost more than the share `max_drop` of the unpruned network's, and at least one channel
    stays. Then the whole reserve fine-tunes, while pruned channels stay 0. Differs from the paper: the accuracy is
    measured on images that didn't rank the channels.
    """

    max_drop: Probability = 0.1

    def repair(self, view: DefenderView) -> Network:
        if view.victim.last_conv is None:
            raise NotApplicableError("fine_pruning prunes the last convolution, and this network has none")
        if len(view.reserve) < 2:
            raise SettingError(
                "fine_pruning ranks channels on one half of the clean reserve and measures accuracy on the other; "
                "legal: a reserve from 2 images"
            )
        layer = last_convolution(view.victim)
        channels = self._dormant(view)
        prune(layer, channels)
        with hold_pruned(layer, channels):
            return super().repair(view)

    def _dormant(self, view: DefenderView) -> Tensor:
        """The channels to prune."""
        ranking, held_out = _halves(view.reserve, view.generator("held out"))
        order = activations(view.victim, ranking.images()).argsort(stable=True)
        predicted = sweep(view.victim, held_out.images(), order, range(len(order)))
        correct = (predicted == held_out.labels.cpu()).sum(1)
        allowed = correct[0] - correct <= self.max_drop * correct[0]
        return order[: int(allowed.long().cumprod(0).sum()) - 1]


def _halves(images: ImageSet, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """Two halves drawn at random, each with one half of every class, rounded up or down."""
    drawn = torch.randperm(len(images), generator=generator)
    by_class = drawn[images.labels.cpu()[drawn].argsort(stable=True)]
    return images.subset(by_class[::2]), images.subset(by_class[1::2])
