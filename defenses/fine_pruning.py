"""Fine-pruning: channels that clean images leave dormant are pruned, then the rest is fine-tuned."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gauntlet.defense import Repair
from gauntlet.errors import NotApplicableError, SettingError
from gauntlet.images import ImageSet
from gauntlet.maths.pruning import activations, convolution, hold_pruned, prune, sweep
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.recipe import Recipe
from gauntlet.settings import Count, Fraction, Positive, Probability
from gauntlet.views import DefenderView

from .fine_tuning import FineTuning, budgeted

__all__ = ["FinePruning", "chosen_convolution", "halves"]


@defense
@dataclass(frozen=True)
class FinePruning(Repair):
    """Prunes the least active channels of a convolution, then fine-tunes.

    Liu, Dolan-Gavitt and Garg 2018, arXiv:1805.12185. Channels are ranked by their mean activation
    (`gauntlet.maths.pruning.activations`) in `layer`, a module path inside the network's body; by default its last
    convolution.

    rule = "paper": one half of the reserve ranks the channels; the other half, stratified, says how many may go: one by
    one until its accuracy has lost more than the share `max_drop` of the unpruned network's, and at least one channel
    stays. Then the whole reserve fine-tunes as `fine_tuning` does, while pruned channels stay 0. Differs from the
    paper: the accuracy is measured on images that didn't rank the channels.

    rule = "contest", of CSAW-HackML-2020: the whole reserve ranks the channels, int(channels * `share`) of them go, and
    everything is trained on by Adam with AMSGrad and without augmentation, pruned channels included.

    learning_rate, epochs, batch_size: by default the rule's own, 0.01, 50 and 256, or 0.001, 5 and 200. tune: whether
    anything is trained after pruning. revive: whether pruned channels take part in it; by default as the rule has it.
    """

    needs_reserve: ClassVar[bool] = True
    cost: ClassVar[float] = 0.5

    learning_rate: Positive | None = None
    epochs: Positive | None = None
    batch_size: Count | None = None
    max_drop: Probability = 0.1
    rule: Literal["paper", "contest"] = "paper"
    layer: str = ""
    share: Fraction = 0.77
    tune: bool = True
    revive: bool | None = None

    @property
    def least_reserve(self) -> int:
        """The paper's rule ranks channels on one half and measures accuracy on the other."""
        return 1 if self.rule == "contest" else 2

    def repair(self, view: DefenderView) -> Network:
        layer = chosen_convolution("fine_pruning", view.victim, self.layer)
        contest = self.rule == "contest"
        channels = self._least_active(view) if contest else self._dormant(view)
        prune(layer, channels)
        if not self.tune:
            return view.victim
        revive = contest if self.revive is None else self.revive
        with nullcontext() if revive else hold_pruned(layer, channels):
            return view.tools.train(view.reserve, "fine_tuning", recipe=self._recipe(view.recipe), network=view.victim)

    def _dormant(self, view: DefenderView) -> Tensor:
        """The channels to prune by the paper's rule."""
        ranking, held_out = halves(view.reserve, view.generator("held out"))
        order = activations(view.victim, ranking.images(), self.layer).argsort(stable=True)
        predicted = sweep(view.victim, held_out.images(), order, range(len(order)), self.layer)
        correct = (predicted == held_out.labels.cpu()).sum(1)
        allowed = correct[0] - correct <= self.max_drop * correct[0]
        return order[: int(allowed.long().cumprod(0).sum()) - 1]

    def _least_active(self, view: DefenderView) -> Tensor:
        """The channels to prune by the contest's rule."""
        order = activations(view.victim, view.reserve.images(), self.layer).argsort(stable=True)
        return order[: int(len(order) * self.share)]

    def _recipe(self, recipe: Recipe) -> Recipe:
        plain = FineTuning()
        if self.rule == "paper":
            return budgeted(
                recipe,
                self.epochs or plain.epochs,
                self.batch_size or plain.batch_size,
                self.learning_rate or plain.learning_rate,
            )
        return Recipe(
            epochs=self.epochs or 5.0,
            batch_size=self.batch_size or 200,
            optimizer="amsgrad",
            learning_rate=self.learning_rate or 1e-3,
            precision=recipe.precision,
        )


def chosen_convolution(who: str, network: Network, path: str) -> nn.Conv2d:
    """The convolution that a setting names, or the last one; SettingError for another layer, NotApplicableError where
    there is none.
    """
    if not path and network.last_conv is None:
        raise NotApplicableError(f"{who} prunes the last convolution, and this network has none")
    try:
        return convolution(network, path)
    except ValueError as error:
        raise SettingError(f"{who}: {error}") from None


def halves(images: ImageSet, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """Two halves drawn at random, each with one half of every class, rounded up or down."""
    drawn = torch.randperm(len(images), generator=generator)
    by_class = drawn[images.labels.cpu()[drawn].argsort(stable=True)]
    return images.subset(by_class[::2]), images.subset(by_class[1::2])
