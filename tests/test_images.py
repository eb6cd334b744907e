"""Images from plug-ins are checked where they enter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from gauntlet.attack import Backdoor, Family
from gauntlet.defense import Preprocessing
from gauntlet.errors import GauntletError
from gauntlet.images import Images, ImageSet, checked_images, checked_levels
from gauntlet.labels import AllToOne
from gauntlet.mounting import mount
from gauntlet.pipeline import Context, tools_for
from gauntlet.poisoning import Poisoning
from gauntlet.recipe import Recipe
from gauntlet.testsets import stamp
from gauntlet.views import AttackerView
from tests.sample_cases import CaseMaker

SHAPE = (4, 1, 6, 5)
LEVELS = torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
WRONG: dict[str, tuple[Callable[[Images], Any], str]] = {
    "levels": (lambda images: (images * 255).to(torch.uint8), r"uint8 \[4, 1, 6, 5\]"),
    "range": (lambda images: images * 255, "values from 1 to 254"),
    "not a number": (lambda images: images / 0 * 0, "values from nan"),
    "standardised": (lambda images: (images - 0.5) / 0.3, "values from -1.6"),
    "bool": (lambda images: images > 0.5, r"bool \[4, 1, 6, 5\]"),
    "one too few": (lambda images: images[1:], r"float32 \[3, 1, 6, 5\]"),
    "nothing": (lambda _images: None, "None"),
    "numpy": (lambda images: images.numpy(), "ndarray"),
}
DUE = r"; due: float images \[4, 1, 6, 5\] in \[0, 1\]"


@dataclass(frozen=True)
class Changing(Preprocessing):
    """Changes images as the test asks for."""

    which: str = ""

    def transform(self, images: Images, generator: torch.Generator) -> Images:
        return WRONG[self.which][0](images)  # type: ignore[no-any-return]


@pytest.mark.parametrize("which", WRONG)
def test_a_preprocessing_that_gives_no_images_is_named(which: str) -> None:
    with pytest.raises(GauntletError, match=f"test_images's transform gave {WRONG[which][1]}.*{DUE}"):
        Changing(which=which).transform_levels(LEVELS, torch.Generator())


@pytest.mark.parametrize("which", WRONG)
def test_a_trigger_that_gives_no_images_is_named(which: str) -> None:
    with pytest.raises(GauntletError, match=f"mine's trigger gave {WRONG[which][1]}.*{DUE}"):
        stamp(Backdoor("backdoor", WRONG[which][0], AllToOne(0)), LEVELS, "mine")


def test_a_training_set_of_other_levels_is_refused() -> None:
    class Wide(Changing):
        def transform_levels(self, levels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return levels.int()

    with pytest.raises(GauntletError, match=r"transform_levels gave int32 .*; due: uint8 images \[4, 1, 6, 5\]"):
        Wide().transform_training(ImageSet.of(LEVELS, torch.arange(4)), torch.Generator())


@pytest.mark.parametrize("images", [torch.rand(SHAPE), torch.rand(SHAPE).double(), torch.ones(SHAPE) + 9e-4])
def test_images_pass_as_they_are(images: Images) -> None:
    assert checked_images(images, SHAPE, "mine") is images
    assert checked_images(images[:0], (0, *SHAPE[1:]), "mine").shape[0] == 0
    assert checked_levels(LEVELS, SHAPE, "mine") is LEVELS


@dataclass(frozen=True)
class Poisoned(Poisoning):
    """Poisons as the test asks for."""

    family: ClassVar[Family] = Family.DIRTY_LABEL

    dark: bool = True

    def trigger(self, images: Images) -> Images:
        return images - 1 if self.dark else images

    def poison_labels(self, view: AttackerView, labels: torch.Tensor) -> torch.Tensor:
        return labels + 20


@pytest.mark.parametrize(
    ("dark", "message"),
    [
        (True, "test_images's trigger or poison_images gave values from -1 to 0; due"),
        (False, "test_images's labels of poisoned images are no classes; legal: 0 to 9"),
    ],
)
def test_poison_is_checked_before_a_victim_is_trained_on_it(
    dark: bool, message: str, context: Context, make_case: CaseMaker
) -> None:
    tools = tools_for(make_case("none", recipe=Recipe(epochs=1)), 0, context)
    with pytest.raises(GauntletError, match=message):
        mount(Poisoned(dark=dark), tools)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (LEVELS.float() / 255, torch.arange(4), r"float32 \[4, 1, 6, 5\] for images; due: uint8 \[N, C, H, W\]"),
        (LEVELS[:, 0], torch.arange(4), r"uint8 \[4, 6, 5\] for images"),
        (LEVELS.numpy(), torch.arange(4), "ndarray for images"),
        (LEVELS, torch.arange(4).int(), r"int32 \[4\] for labels; due: int64 \[4\]"),
        (LEVELS, torch.arange(3), r"int64 \[3\] for labels"),
    ],
)
def test_an_image_set_is_made_of_8_bits_and_as_many_labels(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(GauntletError, match=message):
        ImageSet.of(images, labels)


def test_an_image_set_takes_no_floats_later() -> None:
    known = ImageSet.of(LEVELS, torch.arange(4))
    with pytest.raises(GauntletError, match="float32"):
        known.appended(LEVELS.float() / 255, torch.arange(4))
