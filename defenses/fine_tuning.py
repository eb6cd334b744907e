"""Fine-tuning: the baseline that every repair must beat at the same budget of clean images (trap T19)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gauntlet.defense import Repair
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.recipe import Recipe
from gauntlet.settings import Count, Positive
from gauntlet.views import DefenderView

__all__ = ["FineTuning", "budgeted"]


def budgeted(recipe: Recipe, epochs: float, batch_size: int, learning_rate: float) -> Recipe:
    """SGD over the reserve, as every repair that is compared with fine-tuning takes it. recipe: the case's."""
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        optimizer="sgd",
        learning_rate=learning_rate,
        momentum=0.9,
        weight_decay=5e-4,
        augmentation=recipe.augmentation,
        crop_padding=recipe.crop_padding,
        crop_fill=recipe.crop_fill,
        precision=recipe.precision,
    )


@defense
@dataclass(frozen=True)
class FineTuning(Repair):
    """Trains the victim on with the clean reserve, all layers, SGD with momentum 0.9 and weight decay 5e-4.

    The common baseline of the repair literature (Liu et al. 2018, 1805.12185; Wu et al. 2022, 2206.12654), with its
    learning rate and batch size. An epoch over a reserve of 100 images is a single step, so 50 epochs are taken: 50
    steps there, 500 on 2,500 images. Augmentation and precision are those of the case's recipe.
    """

    needs_reserve: ClassVar[bool] = True
    cost: ClassVar[float] = 0.5

    learning_rate: Positive = 0.01
    epochs: Positive = 50.0
    batch_size: Count = 256

    def repair(self, view: DefenderView) -> Network:
        recipe = budgeted(view.recipe, self.epochs, self.batch_size, self.learning_rate)
        return view.tools.train(view.reserve, "fine_tuning", recipe=recipe, network=view.victim)
