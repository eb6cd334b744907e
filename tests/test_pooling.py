from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import max_pool2d

from gauntlet.pooling import halved, strided_pooling


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(2, 9),
    st.integers(2, 9),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_equals_torchs_pooling(
    count: int, channels: int, height: int, width: int, dtype: torch.dtype, turned: bool
) -> None:
    images = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(height)).to(dtype)
    images[0, 0, 0, 0] = torch.inf
    if turned:
        images = images.to(memory_format=torch.channels_last)
    expected = max_pool2d(images, 2)
    assert torch.equal(halved(images), expected)
    assert halved(images).is_contiguous(memory_format=torch.channels_last) >= turned


def test_what_is_not_a_number_stays_none() -> None:
    images = torch.zeros(1, 1, 2, 2)
    images[0, 0, 1, 1] = torch.nan
    assert halved(images).isnan().all()


@pytest.mark.parametrize(
    ("pool", "taken"),
    [
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d((2, 2), (2, 2)), True),
        (nn.MaxPool2d(2, 1), False),
        (nn.MaxPool2d(3), False),
        (nn.MaxPool2d((2, 3)), False),
        (nn.MaxPool2d(2, padding=1), False),
        (nn.MaxPool2d(2, ceil_mode=True), False),
        (nn.MaxPool2d(2, dilation=2), False),
        (nn.AvgPool2d(2), False),
    ],
    ids=repr,
)
def test_other_pools_are_left_alone_and_all_are_afterwards(pool: nn.Module, taken: bool) -> None:
    network, images = nn.Sequential(nn.Conv2d(1, 4, 3), pool), torch.randn(2, 1, 12, 13)
    expected = network(images)
    with strided_pooling(network), torch.no_grad():
        assert ("forward" in vars(pool)) is taken
        assert torch.equal(network(images), expected)
    assert "forward" not in vars(pool)
