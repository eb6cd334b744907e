"""Muon: against the polynomial of the singular values, against torch's own, and in a recipe."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gauntlet.muon import Muon, orthogonalised

SHAPES = st.sampled_from([(1, 1), (1, 7), (5, 5), (4, 30), (30, 4), (16, 1, 5, 5), (8, 3, 3, 3)])


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_singular_values(matrix: Tensor, steps: int = 5) -> Tensor:
    """The same polynomial, applied to the singular values in double precision."""
    left, values, right = torch.linalg.svd(matrix.flatten(1).double(), full_matrices=False)
    values = values / (values.norm() + 1e-7)
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return torch.reshape((left * values) @ right, matrix.shape)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_the_update_is_the_polynomial_of_the_singular_values(shape: tuple[int, ...], seed: int, scale: float) -> None:
    matrix = drawn(shape, seed) * scale
    torch.testing.assert_close(orthogonalised(matrix).double(), by_singular_values(matrix), rtol=0, atol=5e-3)


def test_singular_values_come_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalised(drawn((64, 400), 0)))
    assert float(values.min()) > 0.65
    assert float(values.max()) < 1.25


def test_a_zero_gradient_gives_a_zero_update() -> None:
    assert torch.equal(orthogonalised(torch.zeros(4, 6)), torch.zeros(4, 6))


def moved(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], start: Tensor, gradients: list[Tensor]
) -> Tensor:
    weight = nn.Parameter(start.clone())
    optimizer = make([weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(12, 12), (6, 40), (40, 6)])
def test_steps_equal_those_of_torch(shape: tuple[int, int]) -> None:
    start, gradients = drawn(shape, 0), [drawn(shape, seed) for seed in range(1, 6)]
    ours = moved(lambda weights: Muon(weights, 0.05, 0.8, 0.1), start, gradients)
    theirs = moved(lambda weights: torch.optim.Muon(weights, lr=0.05, momentum=0.8, weight_decay=0.1), start, gradients)
    # torch iterates in bfloat16, whose last place is 0.8 %.
    assert float((ours - theirs).norm() / (ours - start).norm()) < 0.02


def test_a_convolution_moves_as_the_matrix_of_its_output_channels() -> None:
    gradients = [drawn((8, 3, 3, 3), seed) for seed in range(3)]

    def make(weights: list[nn.Parameter]) -> Muon:
        return Muon(weights, 0.1)

    whole = moved(make, torch.zeros(8, 3, 3, 3), gradients)
    flat = moved(make, torch.zeros(8, 27), [gradient.flatten(1) for gradient in gradients])
    torch.testing.assert_close(whole.flatten(1), flat)
    channels_last = [gradient.contiguous(memory_format=torch.channels_last) for gradient in gradients]
    torch.testing.assert_close(moved(make, torch.zeros(8, 3, 3, 3), channels_last), whole)


def test_a_tall_matrix_takes_longer_steps() -> None:
    step = moved(lambda weights: Muon(weights, 0.1), torch.zeros(40, 10), [drawn((40, 10), 0)])
    values = torch.linalg.svdvals(step)
    assert 0.65 * 0.2 < float(values.min()) <= float(values.max()) < 1.25 * 0.2


def test_weights_without_a_gradient_stay() -> None:
    weight = nn.Parameter(drawn((3, 4), 0))
    before = weight.detach().clone()
    Muon([weight], 0.1, weight_decay=0.5).step()
    assert torch.equal(weight.detach(), before)
    with pytest.raises(NotImplementedError):
        Muon([weight], 0.1).step(lambda: None)
