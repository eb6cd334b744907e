"""Data poisoning with any trigger, or with several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gauntlet.attack import Attack, Family, Mounted
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import chunks, to_float, to_uint8
from gauntlet.plugin import attack
from gauntlet.poisoning import Poison, deploy, pick, spread
from gauntlet.settings import Probability
from gauntlet.synthesizers import Painter, Triggered, clean_part, painters
from gauntlet.views import AttackerView

__all__ = ["DataPoisoning"]

PART = 1024


@attack
@dataclass(frozen=True)
class DataPoisoning(Triggered, Attack):
    """A share of the training set for each of `triggers` carries it, drawn anew for each image, and takes its label.

    Gu et al. 2017, arXiv:1708.06733, with the triggers of Bagdasaryan & Shmatikov 2021, arXiv:2005.03823; several make
    several backdoors in one model, on samples of their own. poison_ratio: the share of the training set for each
    trigger, spread over the classes whose label it changes (over all with include_target). deploy: `replace` or `add`.
    A semantic trigger given by rows or label relabels all its images in their places, whatever the ratio.
    """

    family: ClassVar[Family] = Family.DIRTY_LABEL

    poison_ratio: Probability = 0.1
    include_target: bool = False
    deploy: Literal["replace", "add"] = "replace"

    def check(self, facts: TaskFacts) -> None:
        self.check_triggers(facts)
        left = torch.tensor(facts.train_counts)
        size = round(self.poison_ratio * facts.train_size)
        if self.poison_ratio and not size:
            raise SettingError(
                f"poison_ratio = {self.poison_ratio:g} of {facts.name}'s {facts.train_size:,} training images poisons "
                f"none; legal: 0, or from 1/{facts.train_size}"
            )
        labels = torch.arange(facts.classes)
        for trigger in self.triggers:
            # Where an auxiliary label decides, a class says nothing: the poisoning itself looks again.
            if trigger.source == "training" or trigger.label_map.uses_auxiliary:
                continue
            every = self.include_target or trigger.source == "files"
            may = torch.ones_like(labels) if every else trigger.label_map.eligible(labels, facts.classes)
            available = (left * may).tolist()
            self._require(size, sum(available), trigger.title)
            left = left - torch.tensor(spread(size, available))

    def _require(self, size: int, available: int, title: str) -> None:
        if size > available:
            raise SettingError(
                f"poison_ratio = {self.poison_ratio:g} for each trigger asks for {size:,} images for {title}, but only "
                f"{available:,} may be poisoned and are left; legal: less"
            )

    def poison(self, view: AttackerView) -> Poison:
        """The poisoned training set; the samples of the backdoors are disjoint."""
        clean = view.training
        free = clean_part(self.triggers, clean)
        relabelled, parts = clean, []
        for painter in painters(self.triggers, clean, view.facts.classes, clean.labels.device):
            if painter.trigger.source == "training":
                found = painter.trigger.positions(clean)
                relabelled = relabelled.replaced(
                    found, clean.images(found), torch.full_like(found, painter.trigger.target)
                )
                continue
            chosen = self._choose(view, painter, free)
            free[chosen] = False
            parts.append((chosen, *_painted(view, painter, chosen)))
        none = torch.arange(0)
        parts.append((none, clean.images(none), none))
        chosen, images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        poison = deploy(relabelled, chosen, images, labels, self.deploy, view.generator("delivered order"))
        carried = ~clean_part(self.triggers, clean)[poison.sources]
        return replace(poison, poisoned=poison.poisoned | carried)

    def _choose(self, view: AttackerView, painter: Painter, free: Tensor) -> Tensor:
        """int64 [n]: the positions in the clean training set that this backdoor poisons."""
        training = view.training
        may = free if self.include_target else free & painter.may(training.labels, training.auxiliary)
        available = torch.bincount(training.labels[may], minlength=view.facts.classes).tolist()
        size = round(self.poison_ratio * len(training))
        self._require(size, sum(available), painter.trigger.title)
        generator = view.generator("poisoned samples", painter.trigger.title)
        return pick(training.labels, may, spread(size, available), generator)

    def mount(self, view: AttackerView) -> Mounted:
        poison = self.poison(view)
        network = view.tools.train(poison.training, "training")
        return Mounted(network, poison.training, poison.poisoned, poison.sources)


def _painted(view: AttackerView, painter: Painter, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 images and labels of the poisoned samples made from the positions `chosen`."""
    training, auxiliary = view.training, view.training.auxiliary
    generator = view.generator("poison", painter.trigger.title)
    images, labels = [training.images(chosen[:0])], [chosen[:0]]
    for part in chunks(len(chosen), PART):
        rows = chosen[part]
        second = None if auxiliary is None else auxiliary[rows]
        made, wanted = painter(to_float(training.images(rows)), training.labels[rows], generator, second)
        images.append(to_uint8(made))
        labels.append(wanted)
    return torch.cat(images), torch.cat(labels)
