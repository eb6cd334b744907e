from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from defenses.gaussian_augmentation import GaussianAugmentation
from defenses.jpeg_compression import JpegCompression
from defenses.spatial_smoothing import SpatialSmoothing
from gauntlet.defense import Preprocessing, Stage
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import ImageSet, to_float, to_uint8
from gauntlet.maths.jpeg import jpeg_round_trip
from gauntlet.maths.median import median_filter
from gauntlet.plugin import Kind, kind_of
from gauntlet.settings import build

ALL = (SpatialSmoothing(), JpegCompression(), GaussianAugmentation())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=seeded(9))


def some_training(count: int = 500) -> ImageSet:
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=seeded(7), dtype=torch.uint8)
    return ImageSet.of(images, torch.arange(count) % 10)


def facts(height: int, width: int) -> TaskFacts:
    return TaskFacts("mini", (1, height, width), ("a", "b"), (5, 5), (1, 1), (2, 2), "", "")


@pytest.mark.parametrize("shape", [(6, 1, 28, 28), (6, 3, 32, 20), (0, 1, 8, 8)])
@pytest.mark.parametrize("defense", ALL, ids=repr)
def test_every_transform_keeps_the_contract(defense: Preprocessing, shape: tuple[int, ...]) -> None:
    images = some_images(*shape)
    before = images.clone()
    changed = defense.transform(images, seeded())

    assert kind_of(type(defense)) is Kind.DEFENSE
    assert defense.stage is Stage.PREPROCESSING
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert ((changed >= 0) & (changed <= 1)).all()
    assert torch.equal(images, before)
    assert torch.equal(changed, defense.transform(images, seeded()))
    assert not len(images) or not torch.equal(changed, images)


@pytest.mark.parametrize("shape", [(6, 1, 28, 28), (6, 3, 32, 20), (0, 1, 8, 8)])
@pytest.mark.parametrize("defense", ALL, ids=repr)
def test_images_of_8_bits_are_transformed_alike(defense: Preprocessing, shape: tuple[int, ...]) -> None:
    levels = to_uint8(some_images(*shape))
    before = levels.clone()
    changed = defense.transform_levels(levels, seeded())

    assert changed.dtype == torch.uint8
    assert torch.equal(changed, to_uint8(defense.transform(to_float(levels), seeded())))
    assert torch.equal(levels, before)


@pytest.mark.parametrize("defense", ALL, ids=repr)
def test_apply_fit_changes_every_training_image_and_no_label(defense: Preprocessing) -> None:
    training = some_training()
    fitted = defense.transform_training(training, seeded())
    expected = to_uint8(defense.transform(to_float(training.images()), seeded()))

    assert torch.equal(fitted.images(), expected)
    assert torch.equal(fitted.labels, training.labels)


@pytest.mark.parametrize("name", ["apply_fit", "apply_predict"])
@pytest.mark.parametrize("cls", [SpatialSmoothing, JpegCompression, GaussianAugmentation])
def test_a_defense_that_does_nothing_is_refused(cls: type[Preprocessing], name: str) -> None:
    other = {"apply_fit": "apply_predict", "apply_predict": "apply_fit"}[name]

    assert build(cls, {name: True, other: False}, "x") is not None
    with pytest.raises(SettingError, match="both false"):
        build(cls, {name: False, other: False}, "x")


def test_smoothing_is_the_median_filter() -> None:
    images = some_images(4, 3, 9, 9)
    for window in (1, 2, 3, 5):
        assert torch.equal(SpatialSmoothing(window=window).transform(images, seeded()), median_filter(images, window))


def test_a_window_larger_than_the_image_is_refused_with_the_legal_range() -> None:
    SpatialSmoothing(window=6).check(facts(6, 9))
    with pytest.raises(SettingError, match=r"window = 7 is larger than the 6x9 images of mini; legal: 1 to 6"):
        SpatialSmoothing(window=7).check(facts(6, 9))


def test_smoothing_removes_a_small_patch_but_no_large_one() -> None:
    """What the demos rely on: a 3x3 median takes a single pixel away and leaves a 3x3 patch's centre."""
    images = torch.zeros(2, 1, 12, 12)
    images[0, 0, 6, 6] = 1
    images[1, 0, 5:8, 5:8] = 1
    smooth = SpatialSmoothing().transform(images, seeded())

    assert smooth[0].max() == 0
    assert smooth[1, 0, 6, 6] == 1


def test_compression_is_the_jpeg_round_trip() -> None:
    images = some_images(4, 3, 9, 9)
    for quality in (1, 50, 100):
        assert torch.equal(
            JpegCompression(quality=quality).transform(images, seeded()), jpeg_round_trip(images, quality)
        )


@pytest.mark.parametrize(
    ("cls", "setting", "value"),
    [
        (SpatialSmoothing, "window", 0),
        (JpegCompression, "quality", 0),
        (JpegCompression, "quality", 101),
        (GaussianAugmentation, "sigma", 0),
        (GaussianAugmentation, "ratio", 1.1),
        (GaussianAugmentation, "ratio", -0.1),
    ],
)
def test_a_setting_out_of_range_names_itself_and_the_range(
    cls: type[Preprocessing], setting: str, value: float
) -> None:
    with pytest.raises(SettingError, match=f"setting {setting} = .* should be"):
        build(cls, {setting: value}, "x")


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_the_noise_is_normal_of_that_sigma(sigma: float) -> None:
    images = torch.full((200, 1, 20, 20), 0.5)
    noise = (GaussianAugmentation(sigma=sigma).transform(images, seeded()) - images) / sigma

    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert (noise.abs() < 1).float().mean().item() == pytest.approx(0.6827, abs=0.01)


def test_each_image_and_each_call_gets_noise_of_its_own() -> None:
    images = torch.full((2, 1, 8, 8), 0.5)
    generator = seeded()
    first = GaussianAugmentation(sigma=0.1).transform(images, generator)
    second = GaussianAugmentation(sigma=0.1).transform(images, generator)

    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ratio", [0.001, 0.33, 0.5, 1.0])
def test_augmentation_appends_as_many_noisy_copies_as_art_with_their_labels(ratio: float) -> None:
    from art.defences.preprocessor import GaussianAugmentation as Art

    training = some_training()
    defense = GaussianAugmentation(sigma=0.01, ratio=ratio, augmentation=True, apply_fit=True)
    fitted = defense.transform_training(training, seeded())
    art = Art(sigma=0.01, ratio=ratio, augmentation=True, apply_fit=True, apply_predict=False, clip_values=(0, 1))
    theirs, labels = art(to_float(training.images()).numpy(), training.labels.numpy())
    copies = to_float(fitted.images(torch.arange(500, len(fitted)))).flatten(1)
    nearest = torch.cdist(copies, to_float(training.images()).flatten(1)).argmin(1)

    assert len(fitted) == len(theirs) == len(labels) == 500 + int(500 * ratio)
    assert torch.equal(fitted.images(torch.arange(500)), training.images())
    assert torch.equal(fitted.labels[:500], training.labels)
    assert torch.equal(fitted.labels[500:], training.labels[nearest])
    assert ratio < 1 or len(set(nearest.tolist())) == pytest.approx(500 * (1 - np.exp(-1)), rel=0.1)


def test_augmentation_needs_training_and_copies() -> None:
    with pytest.raises(SettingError, match="needs apply_fit"):
        build(GaussianAugmentation, {"augmentation": True}, "x")
    with pytest.raises(SettingError, match="adds no copies"):
        build(GaussianAugmentation, {"augmentation": True, "apply_fit": True, "ratio": 0}, "x")


def test_augmentation_that_adds_no_copy_is_refused() -> None:
    asked = {"augmentation": True, "apply_fit": True}
    with pytest.raises(SettingError, match=r"ratio = 0.05 of mini's 10 training images adds no copy; legal: from 1/10"):
        build(GaussianAugmentation, {**asked, "ratio": 0.05}, "x").check(facts(8, 8))
    build(GaussianAugmentation, {**asked, "ratio": 0.1}, "x").check(facts(8, 8))


def test_the_defaults_are_those_of_the_demos() -> None:
    assert (SpatialSmoothing().window, JpegCompression().quality) == (3, 50)
    assert GaussianAugmentation() == GaussianAugmentation(
        apply_fit=False, apply_predict=True, sigma=1.0, ratio=1.0, augmentation=False
    )
