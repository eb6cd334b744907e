"""Activation clustering: of the two clusters of a class, the small one is removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.defense import Filter
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.maths.clusters import fast_ica, members, pca, silhouette, two_means
from gauntlet.plugin import defense
from gauntlet.settings import Count
from gauntlet.views import DefenderView

__all__ = ["ActivationClustering"]


@defense
@dataclass(frozen=True)
class ActivationClustering(Filter):
    """Splits the last hidden layer's activations of each class in two, and removes the smaller part where it is small.

    Chen et al. 2018, arXiv:1811.03728: 10 dimensions, k-means with k = 2. A class is suspect when its smaller cluster
    holds less than `max_share` of it (the paper's relative size), and with rule="silhouette" when besides the clusters
    are set apart by more than `min_silhouette` (the paper gives 0.10 to 0.15; max_share=0.5 leaves it alone to judge).
    Differs from the paper: PCA is the default, since the paper's ICA makes the poison one of ten components of equal
    weight and found less of it in small classes (docs/defenses.md). Exclusionary reclassification is not done.
    """

    reduction: Literal["pca", "ica"] = "pca"
    dimensions: Count = 10
    rule: Literal["smaller", "silhouette"] = "smaller"
    max_share: Annotated[float, Field(gt=0, le=0.5)] = 0.35
    min_silhouette: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def check(self, facts: TaskFacts) -> None:
        largest = max(facts.train_counts, default=0)
        if largest < 2 or 1 / largest >= self.max_share:
            raise SettingError(
                f"activation_clustering: max_share = {self.max_share:g} can't be undercut in classes of at most "
                f"{largest:,} images ({facts.name}); a cluster holds 1 image or more"
            )

    def keep(self, view: DefenderView) -> Tensor:
        features, labels = view.training_features.to(view.device), view.training.labels.to(view.device)
        keep = torch.ones_like(labels, dtype=torch.bool)
        generator = view.generator("activation_clustering")
        for _, index in members(labels):
            keep[index[self._suspects(features[index], generator)]] = False
        return keep

    def _suspects(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """bool [n]: the samples of one class that are taken for poison."""
        reduce = pca if self.reduction == "pca" else fast_ica
        points = reduce(features, self.dimensions, generator)
        clusters = two_means(points)
        sizes = torch.bincount(clusters, minlength=2)
        suspects = clusters == sizes.argmin()
        is_suspect = int(sizes.min()) < self.max_share * len(features)
        if is_suspect and self.rule == "silhouette":
            is_suspect = silhouette(points, clusters) > self.min_silhouette
        return suspects if is_suspect else torch.zeros_like(suspects)
