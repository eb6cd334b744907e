from __future__ import annotations

import pytest
import torch
from scipy import stats

from gauntlet.maths.noise import normal

MANY = torch.Size((3, 1, 1024, 1024))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_few_values_are_those_of_torch() -> None:
    shape = torch.Size((4, 1, 28, 28))
    assert torch.equal(normal(shape, seeded()), torch.randn(shape, generator=seeded()))


def test_many_values_are_normal_and_differ_from_part_to_part() -> None:
    noise = normal(MANY, seeded())
    assert noise.shape == MANY
    assert stats.kstest(noise.flatten()[::100].numpy(), "norm").pvalue > 1e-3
    parts = noise.flatten(1)
    correlations = torch.corrcoef(parts)
    assert (correlations - torch.eye(3)).abs().max() < 5 / parts.shape[1] ** 0.5


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    expected = normal(MANY, seeded(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = normal(MANY, seeded(1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


def test_every_call_draws_anew() -> None:
    generator = seeded()
    assert not torch.equal(normal(MANY, generator), normal(MANY, generator))
