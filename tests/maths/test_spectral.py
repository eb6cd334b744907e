from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gauntlet.maths.spectral import spectral_scores, top_directions


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decaying(rows: int, columns: int, factor: float, seed: int) -> Tensor:
    """A matrix whose singular values fall by `factor`, in random directions."""
    rank = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator(seed))).Q
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator(seed + 1))).Q
    made: Tensor = left @ torch.diag(100 * factor ** torch.arange(rank)) @ right.T
    return made


def numpys(matrix: Tensor, count: int) -> NDArray[np.float64]:
    return np.linalg.svd(matrix.numpy().astype(np.float64), full_matrices=False)[2][:count]


def misses(matrix: Tensor, count: int) -> float:
    """The largest 1 - |cosine| between our directions and numpy's."""
    ours = top_directions(matrix, count, generator()).numpy().astype(np.float64)
    return float(np.max(1 - np.abs((ours * numpys(matrix, count)).sum(1))))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_the_directions_are_orthonormal_and_catch_as_much_as_numpys(
    rows: int, columns: int, count: int, seed: int
) -> None:
    matrix = torch.randn(rows, columns, generator=generator(seed))
    directions = top_directions(matrix, count, generator())
    caught = np.linalg.norm(matrix.double().numpy() @ directions.double().numpy().T)

    assert directions.shape == (min(count, rows, columns), columns)
    assert directions @ directions.T == pytest.approx(torch.eye(len(directions)), abs=1e-5)
    assert caught == pytest.approx(np.linalg.norm(matrix.double().numpy() @ numpys(matrix, count).T), rel=1e-5)


@pytest.mark.parametrize("columns", [64, 1024, 1025, 3000])
@pytest.mark.parametrize("count", [1, 5])
def test_directions_that_are_apart_are_numpys(columns: int, count: int) -> None:
    assert misses(decaying(200, columns, 0.8, seed=3), count) < 1e-5


@pytest.mark.parametrize("columns", [800, 1500])
def test_where_no_direction_stands_out_as_much_variance_is_caught(columns: int) -> None:
    matrix = torch.randn(500, columns, generator=generator(1))
    ours = (matrix @ top_directions(matrix, 10, generator()).T).square().sum()
    most = np.square(matrix.numpy() @ numpys(matrix, 10).T).sum()

    assert float(ours) > 0.999 * most


def test_the_same_generator_gives_the_same_directions() -> None:
    matrix = decaying(100, 2000, 0.9, seed=0)

    assert torch.equal(top_directions(matrix, 3, generator(4)), top_directions(matrix, 3, generator(4)))


@pytest.mark.parametrize("columns", [5, 128, 2000])
def test_scores_are_those_of_the_whole_svd(columns: int) -> None:
    features = decaying(150, columns, 0.7, seed=7) + 20 * torch.rand(columns, generator=generator(8))
    centred = features.double() - features.double().mean(0)
    expected = (centred.numpy() @ numpys(centred, 1)[0]) ** 2
    scores = spectral_scores(features, generator())

    assert scores.numpy() == pytest.approx(expected, rel=1e-3, abs=1e-4 * expected.max())


def test_scores_of_nothing_of_one_and_of_equal_points() -> None:
    assert spectral_scores(torch.empty(0, 7), generator()).shape == (0,)
    assert spectral_scores(torch.full((1, 7), 0.3), generator()).tolist() == [0.0]
    assert spectral_scores(torch.full((50, 7), 0.3), generator()).max() < 1e-10
