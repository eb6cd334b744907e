from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from gauntlet.images import to_float
from gauntlet.maths.median import _merged, _merging_network, median_filter, median_levels


def scipys(images: Tensor, window: int) -> Tensor:
    return torch.from_numpy(ndimage.median_filter(images.numpy(), size=(1, 1, window, window), mode="reflect"))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(0, 1000),
)
def test_equals_scipy_bit_for_bit(count: int, channels: int, height: int, width: int, window: int, seed: int) -> None:
    shape = (count, channels, height, width)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    real = torch.rand(shape, generator=generator)

    assert torch.equal(median_levels(levels, window), scipys(levels, window))
    assert torch.equal(median_filter(to_float(levels), window), to_float(scipys(levels, window)))
    assert torch.equal(median_filter(real, window), scipys(real, window))


@pytest.mark.parametrize("window", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("shape", [(700, 1, 28, 28), (300, 3, 32, 32), (1, 1, 600, 500)])
def test_chunks_meet_without_a_seam(shape: tuple[int, ...], window: int) -> None:
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = images[: max(1, 40_000_000 // images[:1].numel() // window**4)]

    assert torch.equal(median_levels(images, window), scipys(images, window))
    assert torch.equal(median_filter(to_float(images), window), to_float(scipys(images, window)))


def test_leaves_its_input_alone_and_takes_any_layout() -> None:
    images = torch.rand(5, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    laid_out = images.to(memory_format=torch.channels_last)

    assert torch.equal(median_filter(laid_out, 3), median_filter(images, 3))
    assert torch.equal(images, before)
    assert not np.shares_memory(median_filter(images, 1).numpy(), images.numpy())


def test_no_images_give_no_images() -> None:
    assert median_filter(torch.empty(0, 3, 8, 8), 3).shape == (0, 3, 8, 8)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="legal: from 1"):
        median_filter(torch.rand(1, 1, 4, 4), 0)


@pytest.mark.parametrize("one", range(1, 12))
@pytest.mark.parametrize("two", range(1, 12))
def test_the_network_merges(one: int, two: int) -> None:
    """The 0-1 principle (Knuth): a network that merges all lists of zeros and ones merges every two lists."""
    pairs = list(itertools.product(range(one + 1), range(two + 1)))
    first, second = (
        torch.tensor([[int(place >= size - pair[which]) for pair in pairs] for place in range(size)])
        for which, size in enumerate((one, two))
    )
    expected = torch.cat([first, second]).sort(dim=0).values
    for start in range(one + two):
        wanted = range(start, one + two)
        found = _merged(list(first), list(second), wanted)
        assert torch.equal(torch.stack(found), expected[start:])


def test_ranks_that_nobody_wants_cost_nothing() -> None:
    some, _ = _merging_network(10, 10, range(7, 13))
    every, _ = _merging_network(10, 10, range(20))

    assert len(some) < len(every)
    assert not all(exchange.keeps_low and exchange.keeps_high for exchange in some)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(20, 1, 28, 28), (20, 3, 32, 32)])
def test_agrees_with_art(shape: tuple[int, ...]) -> None:
    from art.defences.preprocessor import SpatialSmoothing

    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).float() / 255
    theirs, _ = SpatialSmoothing(window_size=3, channels_first=True, clip_values=(0, 1))(images.numpy())

    assert np.abs(median_filter(images, 3).numpy() - theirs).max() <= 1 / 255
