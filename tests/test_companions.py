"""A preprocessing changes each image by itself: a batch is all clean or all triggered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from defenses.gaussian_augmentation import GaussianAugmentation
from defenses.jpeg_compression import JpegCompression
from defenses.spatial_smoothing import SpatialSmoothing
from gauntlet.companions import Mixture
from gauntlet.defense import Preprocessing
from gauntlet.errors import GauntletError
from gauntlet.images import Images
from gauntlet.memory import Memory
from gauntlet.pipeline import Context
from gauntlet.testsets import TestSets
from tests.sample_cases import CaseMaker

Change = Callable[[Images, torch.Generator], Images]


@pytest.fixture
def tested(context: Context, make_case: CaseMaker) -> TestSets:
    case = make_case("badnets")
    return TestSets(context.data(case), case.attack, context.device, Memory())


def noise(images: Images, generator: torch.Generator) -> Images:
    return torch.rand(images.shape, generator=generator) * 0.1


LOOKING: dict[str, Change] = {
    "common pixels": lambda images, _: torch.where(images.amin(0) > 0.9, 0, images),
    "mean image": lambda images, _: (images - images.mean(0)).clamp(0, 1),
    "order": lambda images, _: images.flip(0),
    "brightest of all": lambda images, _: images / images.mean((1, 2, 3)).max() / 9,
    "common pixels, noisy": lambda images, g: torch.where(images.amin(0) > 0.9, 0, images) * 0.9 + noise(images, g),
    "mean image, noisy": lambda images, g: (images - images.mean(0)).clamp(0, 0.9) + noise(images, g),
}
ALONE: dict[str, Change] = {
    "noise": lambda images, g: images * 0.9 + noise(images, g),
    "noise of torch's own": lambda images, _: images * 0.9 + torch.rand_like(images) * 0.1,
    "one draw a batch": lambda images, g: images * torch.rand((), generator=g),
    "draws as it sees": lambda images, g: images.masked_scatter(
        images > 0.5, torch.rand(int((images > 0.5).sum()), generator=g)
    ),
}


@dataclass(frozen=True)
class Changing(Preprocessing):
    """Changes images as the test asks for."""

    which: str = ""

    def transform(self, images: Images, generator: torch.Generator) -> Images:
        return (LOOKING | ALONE)[self.which](images, generator)


@pytest.mark.parametrize("which", LOOKING)
def test_a_preprocessing_that_looks_at_the_batch_is_refused(which: str, tested: TestSets) -> None:
    with pytest.raises(GauntletError, match="test_companions judges images by what else is in the batch"):
        tested.shown(tested.attack.backdoors[0], Changing(which=which), 0)


@pytest.mark.parametrize(
    "defense",
    [
        *(Changing(which=which) for which in ALONE),
        SpatialSmoothing(),
        JpegCompression(),
        GaussianAugmentation(sigma=0.1),
    ],
    ids=repr,
)
def test_one_that_takes_each_by_itself_passes_and_draws_the_same_again(
    defense: Preprocessing, tested: TestSets
) -> None:
    before = torch.get_rng_state()
    shown = tested.shown(tested.attack.backdoors[0], defense, 3)
    again = TestSets(tested.data, tested.attack, tested.device, Memory())
    assert torch.equal(again.shown(tested.attack.backdoors[0], defense, 3), shown)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_from_torchs_own_generator_are_those_of_a_seed(tested: TestSets) -> None:
    noisy = Changing(which="noise of torch's own")
    assert not torch.equal(tested.shown(None, noisy, 0), tested.shown(None, noisy, 1))


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_mixture_holds_the_chosen_images_and_one_other(count: int) -> None:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    mixture = Mixture.of(images, torch.full((3, 1, 1, 1), 200, dtype=torch.uint8), torch.Generator().manual_seed(1))
    assert len(mixture.chosen) == min(count, 8)
    for batch in (mixture.batch, mixture.among_their_own):
        assert len(batch) == 2 * len(mixture.chosen)
        assert torch.equal(batch[mixture.places], images[mixture.chosen])
    assert int((mixture.batch == 200).sum()) == len(mixture.chosen)
    assert int(mixture.among_their_own.max()) < 200
