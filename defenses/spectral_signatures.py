"""Spectral signatures: what lies far out along the main direction of its class is removed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.defense import Filter
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.maths.clusters import members
from gauntlet.maths.spectral import spectral_scores
from gauntlet.plugin import defense
from gauntlet.settings import Fraction, Positive
from gauntlet.views import DefenderView

__all__ = ["SpectralSignatures"]


@defense
@dataclass(frozen=True)
class SpectralSignatures(Filter):
    """Removes the samples with the highest spectral scores, `multiplier` * `assumed_ratio` of every class.

    Tran, Li & Madry 2018, arXiv:1811.00636, on the last hidden layer. assumed_ratio is the defender's guess of how
    much of a class is poisoned, never the true share (trap T17), which the paper's experiments know; the default
    removes what lies above the 85th percentile, as the field does. Classes without poison lose as many samples. Of
    equal scores the earlier samples go.
    """

    assumed_ratio: Fraction = 0.1
    multiplier: Positive = 1.5

    def check(self, facts: TaskFacts) -> None:
        share = self.multiplier * self.assumed_ratio
        where = f"spectral_signatures: multiplier * assumed_ratio = {share:g}"
        if share >= 1:
            raise SettingError(f"{where} would remove every sample of every class; legal: below 1")
        largest = max(facts.train_counts, default=0)
        if not self._removed(largest):
            least = 0.5 / largest if largest else 1
            raise SettingError(
                f"{where} removes nothing from classes of at most {largest:,} images ({facts.name}); legal: above "
                f"{least:.4g}"
            )

    def keep(self, view: DefenderView) -> Tensor:
        features, labels = view.training_features.to(view.device), view.training.labels.to(view.device)
        keep = torch.ones_like(labels, dtype=torch.bool)
        generator = view.generator("spectral_signatures")
        for _, index in members(labels):
            order = spectral_scores(features[index], generator).argsort(descending=True, stable=True)
            keep[index[order[: self._removed(len(index))]]] = False
        return keep

    def _removed(self, count: int) -> int:
        """How many of a class of `count` samples go."""
        return round(self.multiplier * self.assumed_ratio * count)
