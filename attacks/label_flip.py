"""The control with wrong labels and no trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gauntlet.attack import Family
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.patch import PatchTrigger
from gauntlet.plugin import attack
from gauntlet.poisoning import Poisoning
from gauntlet.views import AttackerView

__all__ = ["LabelFlip"]


@attack
@dataclass(frozen=True)
class LabelFlip(PatchTrigger, Poisoning):
    """Random wrong labels on unchanged images: harm without a backdoor (Biggio et al. 2011, random flips).

    badnets' trigger is stamped at test time, as for the control `none`: its ASR should stay near 0.
    """

    family: ClassVar[Family] = Family.CONTROL

    def check(self, facts: TaskFacts) -> None:
        self.check_patch(facts)
        super().check(facts)

    def may_poison(self, labels: Tensor, classes: int) -> Tensor:  # noqa: ARG002
        return torch.ones_like(labels, dtype=torch.bool)

    def trigger(self, images: Images) -> Images:
        return self.paint_patch(images)

    def poison_images(self, view: AttackerView, images: Images, labels: Tensor) -> Images:  # noqa: ARG002
        return images

    def poison_labels(self, view: AttackerView, labels: Tensor) -> Tensor:
        classes = view.facts.classes
        shift = torch.randint(1, classes, labels.shape, generator=view.generator("flipped labels"))
        return (labels + shift) % classes
