"""Poisoning a training set: which samples, how many, added or replaced; shared by every poisoning attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.attack import Attack, Backdoor, Mounted
from gauntlet.errors import GauntletError, SettingError, missing
from gauntlet.facts import TaskFacts
from gauntlet.images import Images, ImageSet, checked_images, checked_vector, to_float, to_uint8
from gauntlet.labels import AllToOne, LabelMap
from gauntlet.plugin import name_of
from gauntlet.settings import Count, Probability
from gauntlet.views import AttackerView

__all__ = ["Poison", "Poisoning", "deploy", "pick", "spread"]


@dataclass(frozen=True, eq=False)
class Poison:
    """A poisoned set: which samples are poisoned, and where in the clean set each sample came from."""

    training: ImageSet
    poisoned: Tensor
    sources: Tensor


def spread(total: int, available: list[int]) -> list[int]:
    """Split `total` over groups in proportion to their sizes (largest remainders), never above a group's size."""
    whole = sum(available)
    if not whole:
        return [0] * len(available)
    shares = [total * size / whole for size in available]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda group: (counts[group] - shares[group], group))
    for group in by_remainder[: total - sum(counts)]:
        counts[group] += 1
    return counts


def pick(labels: Tensor, allowed: Tensor, counts: list[int], generator: torch.Generator) -> Tensor:
    """int64 [n], sorted: positions of `counts[c]` samples of each class c, among those that are allowed (bool [N])."""
    chosen = []
    for value, count in enumerate(counts):
        members = ((labels == value) & allowed).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def deploy(
    clean: ImageSet, chosen: Tensor, images: Tensor, labels: Tensor, how: str, generator: torch.Generator
) -> Poison:
    """The set with poisoned samples: uint8 images and labels made from the positions `chosen` (int64 [n]) of `clean`.

    how: `replace` puts them in the place of the originals; `add` appends them, in an order from `generator`, so that a
    place in the delivered set tells nobody what was added.
    """
    sources = torch.arange(len(clean))
    if how == "add":
        order = torch.randperm(len(clean) + len(chosen), generator=generator)
        poisoned = torch.cat([torch.zeros(len(clean)), torch.ones(len(chosen))]).bool()
        auxiliary = None if clean.auxiliary is None else clean.auxiliary[chosen]
        delivered = clean.appended(images, labels, auxiliary).subset(order)
        return Poison(delivered, poisoned[order], torch.cat([sources, chosen])[order])
    poisoned = torch.zeros(len(clean), dtype=torch.bool)
    poisoned[chosen] = True
    return Poison(clean.replaced(chosen, images, labels), poisoned, sources)


@dataclass(frozen=True)
class Poisoning(Attack):
    """Poisons a share of the training set, then the victim is trained on it with the case's recipe.

    poison_ratio is a share of the whole training set; images whose wanted label is already theirs are left out
    unless include_target. The poison is spread over the classes in proportion. deploy `replace` puts poisoned images
    in the place of the originals, `add` appends them; max_poisoned caps their number.
    """

    target: Annotated[int, Field(ge=0)] = 0
    poison_ratio: Probability = 0.1
    include_target: bool = False
    deploy: Literal["replace", "add"] = "replace"
    max_poisoned: Count | None = None

    ratio_of: ClassVar[Literal["training set", "target class"]] = "training set"

    def trigger(self, images: Images) -> Images:
        """What the evaluator stamps on test images, and by default on poisoned training images too."""
        raise NotImplementedError(missing(self, "trigger"))

    @property
    def label_map(self) -> LabelMap:
        """The labels that the trigger should yield."""
        return AllToOne(self.target)

    @property
    def backdoors(self) -> tuple[Backdoor, ...]:
        return (Backdoor("backdoor", self.trigger, self.label_map),)

    def may_poison(self, labels: Tensor, classes: int) -> Tensor:
        """bool [N]: the samples that may be chosen."""
        if self.include_target:
            return torch.ones_like(labels, dtype=torch.bool)
        return self.label_map.eligible(labels, classes)

    def poison_images(self, view: AttackerView, images: Images, labels: Tensor) -> Images:  # noqa: ARG002
        """The training images that carry the poison, float [n, C, H, W], made from clean ones with true labels."""
        return self.trigger(images)

    def poison_labels(self, view: AttackerView, labels: Tensor) -> Tensor:
        """The labels that the poisoned samples get."""
        return self.label_map.apply(labels, view.facts.classes)

    def wanted(self, counts: Tensor, classes: int) -> tuple[int, list[int]]:
        """How many samples to poison, and how many of each class may be, given the images of each class."""
        # Where an auxiliary label decides, a class says nothing: `choose` looks again.
        every = torch.ones(classes, dtype=torch.bool)
        allowed = every if self.label_map.uses_auxiliary else self.may_poison(torch.arange(classes), classes)
        available = (counts * allowed).tolist()
        total = round(self.poison_ratio * self._base(counts))
        return min(total, self.max_poisoned or total), available

    def _base(self, counts: Tensor) -> int:
        """The number of images that poison_ratio is a share of."""
        return int(counts[self.target] if self.ratio_of == "target class" else counts.sum())

    def check(self, facts: TaskFacts) -> None:
        if self.target >= facts.classes:
            raise SettingError(
                f"target = {self.target}: {facts.name} has {facts.classes} classes; legal: 0 to {facts.classes - 1}"
            )
        self.label_map.check(facts)
        counts = torch.tensor(facts.train_counts)
        total, available = self.wanted(counts, facts.classes)
        base = self._base(counts)
        if self.poison_ratio and not total:
            raise SettingError(
                f"poison_ratio = {self.poison_ratio:g} of the {self.ratio_of}'s {base:,} images poisons none of "
                f"{facts.name}; legal: 0, or from 1/{base}"
            )
        if total > sum(available):
            cap = "" if self.max_poisoned is None else f", or max_poisoned at most {sum(available):,}"
            raise SettingError(
                f"{self._asked()} asks for {total:,} images, but {facts.name} has only {sum(available):,} that may be "
                f"poisoned; legal: poison_ratio at most {sum(available) / base:.4g}{cap}"
            )

    def _asked(self) -> str:
        cap = "" if self.max_poisoned is None else f", max_poisoned = {self.max_poisoned:,}"
        return f"poison_ratio = {self.poison_ratio:g}{cap}"

    def choose(self, view: AttackerView) -> Tensor:
        """int64 [n], sorted: the positions in the clean training set that are poisoned."""
        labels = view.training.labels
        counts = torch.bincount(labels, minlength=view.facts.classes)
        total, available = self.wanted(counts, view.facts.classes)
        allowed = self._allowed(view)
        if self.label_map.uses_auxiliary:
            available = torch.bincount(labels[allowed], minlength=view.facts.classes).tolist()
            if total > sum(available):
                raise SettingError(
                    f"{self._asked()} asks for {total:,} images, but {view.facts.name} has only {sum(available):,} "
                    "whose auxiliary label is another one than their label"
                )
        return pick(labels, allowed, spread(total, available), view.generator("poisoned samples"))

    def _allowed(self, view: AttackerView) -> Tensor:
        training, classes = view.training, view.facts.classes
        if self.label_map.uses_auxiliary and not self.include_target:
            allowed = self.label_map.eligible(training.labels, classes, training.auxiliary)
        else:
            allowed = self.may_poison(training.labels, classes)
        return checked_vector(allowed, torch.bool, len(training), f"{name_of(self)}'s may_poison")

    def _new_labels(self, view: AttackerView, chosen: Tensor) -> Tensor:
        labels, auxiliary = view.training.labels[chosen], view.training.auxiliary
        if self.label_map.uses_auxiliary and auxiliary is not None:
            return self.label_map.apply(labels, view.facts.classes, auxiliary[chosen])
        return self.poison_labels(view, labels)

    def poison(self, view: AttackerView) -> Poison:
        """The poisoned training set."""
        chosen = self.choose(view)
        clean = view.training
        labels = clean.labels[chosen]
        given, who = to_float(clean.images(chosen)), name_of(self)
        shape = given.shape
        made = checked_images(self.poison_images(view, given, labels), shape, f"{who}'s trigger or poison_images")
        images = to_uint8(made)
        new_labels = checked_vector(self._new_labels(view, chosen), torch.int64, len(chosen), f"{who}'s poison_labels")
        if len(chosen) and not 0 <= int(new_labels.min()) <= int(new_labels.max()) < view.facts.classes:
            raise GauntletError(
                f"{who}'s labels of poisoned images are no classes; legal: 0 to {view.facts.classes - 1}"
            )
        return deploy(clean, chosen, images, new_labels, self.deploy, view.generator("delivered order"))

    def train(self, view: AttackerView, poison: Poison) -> Mounted:
        """The victim trained on the poisoned set."""
        network = view.tools.train(poison.training, "training")
        return Mounted(network, poison.training, poison.poisoned, poison.sources)

    def mount(self, view: AttackerView) -> Mounted:
        return self.train(view, self.poison(view))
