"""The evaluator's measurements on the test set: counts only, ratios come later."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.attack import Backdoor
from gauntlet.records import BackdoorCounts, Counts

__all__ = ["REJECTED", "Predictions", "copied", "count", "count_backdoor", "count_by_class"]

REJECTED = -1
"""The class of a rejected input: neither its own nor anybody's target."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Per-sample predictions of one image set: name (`clean` or a backdoor's), true label, wanted label, prediction.

    label is -1 where it is unknown, wanted where no label is wanted. suspicion, flagged: what an input detector says;
    None without one. auxiliary: the second labels of a task that has them.
    """

    name: str
    labels: Tensor
    wanted: Tensor
    predicted: Tensor
    suspicion: Tensor | None = None
    flagged: Tensor | None = None
    auxiliary: Tensor | None = None

    @property
    def answered(self) -> Tensor:
        """The predictions with -1 where the input was rejected."""
        return self.predicted if self.flagged is None else self.predicted.masked_fill(self.flagged, REJECTED)

    def asked(self, classes: int) -> tuple[Tensor, int, Tensor | None]:
        """What a label map is asked with: copies, since the test labels serve every case."""
        return copied(self.labels, classes, self.auxiliary)


def copied(labels: Tensor, classes: int, auxiliary: Tensor | None) -> tuple[Tensor, int, Tensor | None]:
    """The arguments of a label map's methods, as copies that it may write into."""
    return labels.clone(), classes, None if auxiliary is None else auxiliary.clone()


def count(hits: Tensor) -> Counts:
    """Counts of a bool tensor."""
    return Counts(hits=int(hits.sum()), n=hits.numel())


def count_by_class(hits: Tensor, labels: Tensor, classes: int) -> tuple[Counts, ...]:
    """Counts of a bool tensor for each true class; an image of unknown class, -1, counts for none."""
    hits, labels = hits[labels >= 0], labels[labels >= 0]
    members = torch.bincount(labels, minlength=classes).tolist()
    right = torch.bincount(labels[hits], minlength=classes).tolist()
    return tuple(Counts(hits=hit, n=n) for hit, n in zip(right, members, strict=True))


def count_backdoor(backdoor: Backdoor, clean: Predictions, triggered: Predictions, classes: int) -> BackdoorCounts:
    """What one backdoor does, from the predictions on clean and on triggered images, which may be other ones.

    ASR is counted over the images whose wanted label is not the true one (trap T1), for every label map (trap T15).
    Clean images that carry the feature as they are count as triggered alone.
    """
    labels, answered = triggered.labels, triggered.answered
    counted = backdoor.labels.eligible(*triggered.asked(classes))
    hits = answered == triggered.wanted
    known = counted & (labels >= 0)
    aimed = backdoor.labels.aimed(*triggered.asked(classes))
    before = backdoor.labels.eligible(*clean.asked(classes)) & ~backdoor.carriers(*clean.asked(classes))
    sought = backdoor.labels.apply(*clean.asked(classes))
    return BackdoorCounts(
        name=backdoor.name,
        asr=count(hits[counted]),
        asr_inclusive=count(hits[aimed]),
        untriggered=count((clean.answered == sought)[before]),
        robust=count((answered == labels)[known]),
        by_class=count_by_class(hits[counted], labels[counted], classes),
    )
