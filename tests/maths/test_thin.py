from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gauntlet.maths.thin import input_gradient, thin_gradients


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_image(network: nn.Module, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    output: Tensor = network(leaf)
    weights = torch.rand(output.shape, generator=seeded(1))
    (gradient,) = torch.autograd.grad((output * weights).sum(), leaf)
    return gradient


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.tuples(st.integers(6, 11), st.integers(6, 11)),
    st.booleans(),
    st.integers(0, 99),
)
def test_equals_autograd(
    channels: tuple[int, int],
    kernel: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
    last: bool,
    seed: int,
) -> None:
    rows, columns = (min(pad, side - 1) for pad, side in zip(padding, kernel, strict=True))
    images = torch.rand(3, channels[0], *size, generator=seeded(seed), dtype=torch.double).requires_grad_()
    weight = torch.rand(channels[1], channels[0], *kernel, generator=seeded(seed), dtype=torch.double)
    output = nn.functional.conv2d(images, weight, padding=(rows, columns))
    given_back = torch.rand(output.shape, generator=seeded(seed + 1), dtype=torch.double)
    if last:
        given_back = given_back.contiguous(memory_format=torch.channels_last)
    (expected,) = torch.autograd.grad(output, images, given_back)

    torch.testing.assert_close(input_gradient(given_back, weight, (rows, columns), images.shape), expected)


@pytest.mark.parametrize(
    "first",
    [
        nn.Conv2d(3, 8, 5, padding=2),
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.Conv2d(3, 8, 3, stride=2),
        nn.Conv2d(3, 8, 3, dilation=2),
        nn.Conv2d(3, 9, 3, groups=3),
        nn.Conv2d(3, 8, 1, padding=1),
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
    ],
    ids=str,
)
def test_every_first_layer_gives_the_same_gradient_and_is_left_as_it_was(first: nn.Conv2d) -> None:
    network = nn.Sequential(first, nn.ReLU(), nn.Conv2d(first.out_channels, 4, 3))
    images = torch.rand(5, 3, 12, 11, generator=seeded())
    expected = by_image(network, images)
    with thin_gradients(network):
        found = by_image(network, images)

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(by_image(network, images), expected)
    assert not any(module._forward_hooks for module in network.modules())


def test_only_thin_layers_of_the_plain_kind_take_the_detour() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 3, stride=2))
    with thin_gradients(network):
        assert [len(layer._forward_hooks) for layer in network] == [1, 0, 0]


def test_works_under_autocast() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3))
    images = torch.rand(5, 1, 12, 12, generator=seeded())
    # Against the same forward pass: from float32's, single activations may differ in their sign.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = by_image(network, images)
        with thin_gradients(network):
            found = by_image(network, images)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
