"""Training on batches of which a share carries triggers: shared by the attacks that train themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gauntlet.errors import SettingError
from gauntlet.images import ImageSet
from gauntlet.network import Network
from gauntlet.objective import Batch, Objective
from gauntlet.synthesizers import Painter, Triggers, clean_part, painters
from gauntlet.views import AttackerView

__all__ = ["Mixed", "check_share", "clean_training", "mixed"]


@dataclass(frozen=True, eq=False)
class Mixed(Objective):
    """Cross-entropy on a batch of which each painter triggers and relabels `share`, drawn anew each time.

    auxiliary: int64 [N], the second labels of the training set, on the device; None for tasks without them.
    """

    painters: tuple[Painter, ...]
    share: float
    label_smoothing: float
    auxiliary: Tensor | None = None

    def loss(self, network: Network, batch: Batch) -> Tensor:
        images, labels = self.mixed(batch)
        return cross_entropy(network(images).float(), labels, label_smoothing=self.label_smoothing)

    def mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images and labels of a batch, some of them triggered; the batch itself stays as it is."""
        count = len(batch.labels)
        images, labels = batch.images.clone(), batch.labels.clone()
        order = torch.randperm(count, generator=batch.generator, device=batch.generator.device)
        order = order.to(labels.device, non_blocking=True)
        for place, painter in enumerate(self.painters):
            # Shares of a batch that is too small for one sample each still get their due over many batches.
            start, stop = (round(self.share * count * step) for step in (place, place + 1))
            rows = order[start:stop]
            second = None if self.auxiliary is None else self.auxiliary[batch.positions[rows]]
            made, wanted = painter(batch.images[rows], batch.labels[rows], batch.generator, second)
            images[rows], labels[rows] = made, wanted
        return images, labels


def check_share(share: float, triggers: Triggers, name: str = "share") -> None:
    """Raise SettingError when the shares of all triggers don't fit into a batch."""
    if share * len(triggers) > 1:
        raise SettingError(
            f"{name} = {share:g} of every batch for each of {len(triggers)} triggers; legal: at most "
            f"{1 / len(triggers):.3g}"
        )


def clean_training(triggers: Triggers, view: AttackerView) -> tuple[ImageSet, Tensor]:
    """The training images without a semantic trigger's, and int64 [n]: their positions in the whole set."""
    clean = clean_part(triggers, view.training)
    return (view.training if clean.all() else view.training.subset(clean)), clean.nonzero().flatten()


def mixed(triggers: Triggers, view: AttackerView, training: ImageSet, share: float) -> Mixed:
    """The objective for a training on `training`."""
    made = painters(triggers, view.training, view.facts.classes, view.device)
    auxiliary = None if training.auxiliary is None else training.auxiliary.to(view.device)
    return Mixed(made, share, view.recipe.label_smoothing, auxiliary)
