"""Neural Cleanse: seeks the smallest trigger of every class; one that is far too small betrays a backdoor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gauntlet.defense import Inspection, ModelVerdict
from gauntlet.images import ImageSet, to_float, to_uint8
from gauntlet.maths.inversion import Inverted, Search, anomaly_index, invert
from gauntlet.maths.survey import Survey, survey
from gauntlet.network import Network
from gauntlet.plugin import defense
from gauntlet.precision import resolve
from gauntlet.settings import Count, Fraction, Positive
from gauntlet.views import DefenderView

from .fine_tuning import budgeted

__all__ = ["NeuralCleanse"]


@defense
@dataclass(frozen=True)
class NeuralCleanse(ModelVerdict):
    """Calls a class a target when its trigger is small beyond `max_index` deviations, and unlearns what it found.

    Wang et al. 2019, IEEE S&P. A class's anomaly is the paper's index with a sign: positive for a mask below the median
    norm, since only those are suspect. `steps` of Adam on `batch_size` images of the clean reserve seek all classes'
    triggers together (`gauntlet.maths.inversion`). `repair` trains a flagged victim on with the reserve, a share
    `stamped` of it under the triggers of the suspects, in turn, and every image under its true label; as fine_tuning's,
    the budget is counted in epochs, since the paper's single one would be one step on a reserve of 100 images.

    A task of more than `survey_from` classes is surveyed (`gauntlet.maths.survey`): a brief search for every class;
    then the full one for the `closest` classes, of the smallest masks, and for `ordinary` others, drawn at random,
    which give median and deviation. A class that had the brief search alone is never a suspect: its anomaly, among the
    brief searches, is cut off at `max_index`.
    """

    needs_reserve: ClassVar[bool] = True
    cost: ClassVar[float] = 2.0

    steps: Count = 500
    batch_size: Count = 32
    learning_rate: Positive = 0.1
    mask_cost: Positive = 1e-3
    success: Fraction = 0.98
    patience: Count = 10
    max_index: Positive = 2.0
    repair: bool = True
    stamped: Fraction = 0.2
    epochs: Positive = 50.0
    repair_rate: Positive = 0.01
    survey_from: Count = 64
    closest: Count = 64
    ordinary: Count = 32

    def inspect(self, view: DefenderView) -> Inspection:
        found, anomaly = self._search(view)
        suspects = tuple((anomaly > self.max_index).nonzero().flatten().tolist())
        network = self._unlearnt(view, found, suspects) if self.repair and suspects else None
        return Inspection(anomaly, suspects, network, found.patterns.cpu(), found.masks.cpu())

    def _search(self, view: DefenderView) -> tuple[Inverted, Tensor]:
        """The triggers of all classes, and float64 [classes] on the CPU, how anomalous each is."""
        images, classes = to_float(view.reserve.images().to(view.device)), view.facts.classes
        search = Search(
            steps=self.steps,
            batch=self.batch_size,
            learning_rate=self.learning_rate,
            cost=self.mask_cost,
            success=self.success,
            patience=self.patience,
        )
        generator = view.generator("inversion")
        dtype = resolve(view.recipe, view.victim, view.facts.shape, view.device)
        if classes <= max(self.survey_from, self.closest + self.ordinary):
            every = torch.arange(classes, device=view.device)
            found = invert(view.victim, images, every, search, generator=generator, dtype=dtype)
            return found, anomaly_index(found.norms).cpu()
        plan = Survey(self.closest, self.ordinary)
        surveyed = survey(view.victim, images, classes, search, plan, generator=generator, dtype=dtype)
        full, anomaly = surveyed.full.cpu(), surveyed.anomaly.cpu()
        return surveyed.found, torch.where(full, anomaly, anomaly.clamp(max=self.max_index))

    def _unlearnt(self, view: DefenderView, found: Inverted, suspects: Sequence[int]) -> Network:
        images = stamped(view.reserve, found, suspects, self.stamped, view.generator("unlearning"))
        recipe = budgeted(view.recipe, self.epochs, 256, self.repair_rate)
        return view.tools.train(images, "unlearning", recipe=recipe, network=view.victim)


def stamped(
    reserve: ImageSet, found: Inverted, suspects: Sequence[int], share: float, generator: torch.Generator
) -> ImageSet:
    """The reserve with a random `share` of it, at least an image, under the suspects' triggers in turn; true labels."""
    count = max(1, round(share * len(reserve)))
    chosen = torch.randperm(len(reserve), generator=generator)[:count]
    which = torch.tensor(suspects)[torch.arange(count) % len(suspects)]
    masks, patterns = found.masks.cpu()[which], found.patterns.cpu()[which]
    images = to_float(reserve.images(chosen)).lerp(patterns, masks)
    return reserve.replaced(chosen, to_uint8(images), reserve.labels[chosen])
