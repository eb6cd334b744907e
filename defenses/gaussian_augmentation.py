"""Gaussian augmentation: normal noise on inputs, on training images, or on copies added to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gauntlet.defense import Preprocessing
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import Images, ImageSet, chunks, to_float, to_uint8
from gauntlet.maths.noise import normal
from gauntlet.plugin import defense
from gauntlet.settings import Positive, Probability

__all__ = ["GaussianAugmentation"]


@defense
@dataclass(frozen=True)
class GaussianAugmentation(Preprocessing):
    """Adds N(0, sigma) to every value and clips to [0, 1].

    Zantedeschi, Nicolae and Rawat 2017, arXiv:1707.06728; the settings of the NIST Dioptra demos. With `augmentation`
    the training set keeps its images and gains int(n * ratio) noisy copies of images drawn with replacement; without
    it every training image is noisy and `ratio` means nothing. Inputs at test time are noisy in either case, when
    apply_predict asks for it. sigma is in units of the [0, 1] range: the demos' 1 drowns an image, 0.1 is mild.
    """

    sigma: Positive = 1.0
    ratio: Probability = 1.0
    augmentation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augmentation and not self.apply_fit:
            raise ValueError("augmentation adds copies to the training set, so it needs apply_fit = true")
        if self.augmentation and not self.ratio:
            raise ValueError("with augmentation, ratio = 0 adds no copies; legal: above 0, at most 1")

    def check(self, facts: TaskFacts) -> None:
        if self.augmentation and not int(facts.train_size * self.ratio):
            raise SettingError(
                f"gaussian_augmentation: ratio = {self.ratio:g} of {facts.name}'s {facts.train_size:,} training images "
                f"adds no copy; legal: from 1/{facts.train_size} to 1"
            )

    def transform(self, images: Images, generator: torch.Generator) -> Images:
        return normal(images.shape, generator).mul_(self.sigma).to(images.device).add_(images).clamp_(0, 1)

    def transform_training(self, training: ImageSet, generator: torch.Generator) -> ImageSet:
        if not self.augmentation:
            return super().transform_training(training, generator)
        count = int(len(training) * self.ratio)
        drawn = torch.randint(len(training), (count,), generator=generator, device=generator.device)
        drawn = drawn.to(training.rows.device)
        copies = training.images(drawn)
        for part in chunks(count, 4096):
            copies[part] = to_uint8(self.transform(to_float(copies[part]), generator))
        return training.appended(copies, training.labels[drawn])
