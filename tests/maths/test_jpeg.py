from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow.parquet import ParquetFile
from torch import Tensor

from gauntlet.images import to_float
from gauntlet.maths.jpeg import jpeg_levels, jpeg_round_trip

SHARED = Path(__file__).parents[2] / "../shared/data"


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


def pillows_all(images: Tensor, quality: int) -> Tensor:
    """uint8 [N, C, H, W]: three channels as one RGB file, any other number as a grayscale file a channel."""
    if images.shape[1] == 3:
        return torch.stack([pillows(image, quality) for image in images])
    return torch.stack([torch.stack([pillows(plane, quality) for plane in image]) for image in images])


CONTENTS = ("natural", "noise", "black and white", "flat", "chequered")
SIDES = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 70]))


def drawn(content: str, shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """Also what no photograph holds: at a low quality it drives coefficients and levels to their limits."""
    generator = torch.Generator().manual_seed(seed)
    if content == "natural":
        return natural(shape, seed)
    if content == "noise":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if content == "black and white":
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8) * 255
    if content == "flat":
        return torch.randint(0, 256, (*shape[:2], 1, 1), generator=generator, dtype=torch.uint8).expand(shape)
    squares = torch.arange(shape[2])[:, None] // (1 + seed % 9) + torch.arange(shape[3]) // (1 + seed % 7)
    return (squares % 2 * 255).to(torch.uint8).expand(shape)


def assert_pillows(levels: Tensor, quality: int) -> None:
    expected = pillows_all(levels, quality)
    assert torch.equal(jpeg_levels(levels, quality), expected)
    assert torch.equal(jpeg_round_trip(to_float(levels), quality), to_float(expected))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(CONTENTS),
    st.integers(1, 4),
    st.sampled_from([1, 3, 3, 3, 2, 4]),
    SIDES,
    SIDES,
    st.one_of(st.integers(1, 100), st.integers(1, 12)),
    st.integers(0, 10_000),
)
def test_equals_pillow_bit_for_bit(
    content: str, count: int, channels: int, height: int, width: int, quality: int, seed: int
) -> None:
    images = drawn(content, (count, channels, height, width), seed)

    assert_pillows(images, quality)


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_pillow_at_every_quality_and_small_size(channels: int) -> None:
    for quality in range(1, 101):
        for content in ("natural", "noise", "black and white"):
            images = drawn(content, (2, channels, 17, 24), quality)
            assert_pillows(images, quality)
    for height in range(1, 19):
        for width in range(1, 19):
            images = drawn("noise", (2, channels, height, width), height)
            assert_pillows(images, 50)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_mnist_equals_pillow(quality: int) -> None:
    idx = np.frombuffer(gzip.decompress(next(SHARED.rglob("t10k-images*")).read_bytes()), np.uint8, offset=16)
    images = torch.tensor(idx[: 300 * 28 * 28]).view(300, 1, 28, 28)

    assert_pillows(images, quality)


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="../shared/data/cifar10 is absent")
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_cifar10_equals_pillow(quality: int) -> None:
    file = ParquetFile(next((SHARED / "cifar10").rglob("test*.parquet")))
    rows = next(file.iter_batches(100, columns=["image"])).to_pylist()
    pictures = [np.array(Image.open(BytesIO(row["image"]["bytes"]))) for row in rows]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)

    assert_pillows(images, quality)


@pytest.mark.parametrize(("channels", "count", "side"), [(1, 700, 28), (3, 300, 32), (1, 2, 500), (3, 2, 500)])
def test_parts_meet_without_a_seam(channels: int, count: int, side: int) -> None:
    images = natural((count, channels, side, side), 0)

    assert_pillows(images, 50)


def test_leaves_its_input_alone_and_takes_any_layout() -> None:
    images = natural((5, 3, 20, 21), 0)
    before = images.clone()
    expected = jpeg_levels(images, 50)

    assert torch.equal(jpeg_levels(images.to(memory_format=torch.channels_last), 50), expected)
    assert torch.equal(jpeg_levels(images.flip(0), 50), expected.flip(0))
    assert torch.equal(images, before)


def test_is_exact_whatever_precision_the_caller_works_in() -> None:
    """Autocast and bf16 products would change the result without a word."""
    images = natural((5, 3, 20, 21), 0)
    expected = jpeg_levels(images, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(jpeg_levels(images, 50), expected)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(jpeg_levels(images, 50), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_it_is_lossy_and_less_so_at_a_higher_quality() -> None:
    images = natural((10, 3, 32, 32), 0)
    changes = [to_float(jpeg_levels(images, quality)) - to_float(images) for quality in (10, 50, 95)]
    losses = [float(change.abs().mean()) for change in changes]

    assert losses[0] > losses[1] > losses[2] > 0


def test_float_images_are_rounded_to_8_bits_first() -> None:
    images = natural((4, 1, 16, 16), 0)

    assert torch.equal(jpeg_round_trip(to_float(images) + 0.4 / 255, 50), to_float(jpeg_levels(images, 50)))


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
