from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from gauntlet.images import to_float
from gauntlet.maths.jpeg import jpeg_round_trip


def natural(shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """Smooth images with some noise: what JPEG is made for, and enough detail to lose."""
    generator = torch.Generator().manual_seed(seed)
    count, channels, height, width = shape
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    noise = torch.randn(shape, generator=generator) / 20
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


def pillows(image: Tensor, quality: int) -> Tensor:
    """uint8 [C, H, W] or [H, W] by Pillow alone, a file an image."""
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()).save(
        file, format="JPEG", quality=quality
    )
    levels = torch.from_numpy(np.array(Image.open(file)))
    return levels.permute(2, 0, 1) if levels.ndim == 3 else levels


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.integers(1, 100), st.integers(0, 1000))
def test_colour_equals_pillow(count: int, height: int, width: int, quality: int, seed: int) -> None:
    images = natural((count, 3, height, width), seed)
    expected = torch.stack([pillows(image, quality) for image in images])

    assert torch.equal(jpeg_round_trip(images, quality), to_float(expected))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 100),
    st.integers(0, 1000),
)
def test_other_channels_equal_pillow_plane_by_plane(
    count: int, channels: int, height: int, width: int, quality: int, seed: int
) -> None:
    images = natural((count, channels, height, width), seed)
    expected = torch.stack([torch.stack([pillows(plane, quality) for plane in image]) for image in images])

    assert torch.equal(jpeg_round_trip(images, quality), to_float(expected))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_many_images_over_several_files_and_threads(
    channels: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    images = natural((1200, channels, 28, 28), 0)
    got = jpeg_round_trip(images, 50)

    for index in (0, 63, 64, 511, 512, 513, 1199):
        image = images[index] if channels == 3 else images[index, 0]
        assert torch.equal(got[index].squeeze(0), to_float(pillows(image, 50)))


def test_it_is_lossy_and_less_so_at_a_higher_quality() -> None:
    images = natural((10, 3, 32, 32), 0)
    losses = [float((jpeg_round_trip(images, quality) - to_float(images)).abs().mean()) for quality in (10, 50, 95)]

    assert losses[0] > losses[1] > losses[2] > 0


def test_float_images_are_rounded_to_8_bits_first() -> None:
    images = natural((4, 1, 16, 16), 0)

    assert torch.equal(jpeg_round_trip(to_float(images) + 0.4 / 255, 50), jpeg_round_trip(images, 50))


def test_no_images_give_no_images() -> None:
    assert jpeg_round_trip(torch.empty(0, 3, 8, 8), 50).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("quality", [0, 101])
def test_an_impossible_quality_is_refused(quality: int) -> None:
    with pytest.raises(ValueError, match="legal: 1 to 100"):
        jpeg_round_trip(torch.rand(1, 1, 8, 8), quality)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("channels", [1, 3])
def test_agrees_with_art(channels: int) -> None:
    from art.defences.preprocessor import JpegCompression

    images = to_float(natural((30, channels, 28, 28), 3)).numpy()
    theirs, _ = JpegCompression(clip_values=(0, 1), quality=50, channels_first=True)(images.copy())

    assert np.abs(jpeg_round_trip(torch.from_numpy(images), 50).numpy() - theirs).max() <= 1.001 / 255
