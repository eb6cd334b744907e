from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize, nnls
from torch import Tensor

from gauntlet.maths.mgda import Normalisation, balance, gram, min_norm, normalisers

KINDS: tuple[Normalisation, ...] = get_args(Normalisation)


def gradients(tasks: int, size: int, seed: int, *, shared: float = 0.0) -> Tensor:
    """[tasks, size] with a common part, so that some of them agree."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(size, generator=generator)
    scales = torch.rand(tasks, 1, generator=generator, dtype=torch.float64) * 3 + 0.05
    own = torch.randn(tasks, size, generator=generator)
    return ((own + shared * common).double() * scales).contiguous()


def length(products: Tensor, weights: Tensor) -> float:
    return float(weights @ products @ weights)


def enumerated(products: Tensor) -> float:
    """The least squared norm over the simplex: the best of all faces, each solved in closed form."""
    best = float(products.diagonal().min())
    for size in range(2, len(products) + 1):
        for face in itertools.combinations(range(len(products)), size):
            part = products[list(face)][:, list(face)]
            found = torch.linalg.lstsq(part, torch.ones(size, dtype=torch.float64), driver="gelsd").solution
            if found.sum() > 0 and (found / found.sum() >= -1e-12).all():
                best = min(best, length(part, found / found.sum()))
    return best


def by_nnls(vectors: Tensor) -> float:
    """The least squared norm by non-negative least squares, with the sum held at 1 by a heavy row."""
    heavy = 1e4
    matrix = np.vstack([vectors.T.numpy(), heavy * np.ones((1, len(vectors)))])
    wanted = np.concatenate([np.zeros(vectors.shape[1]), [heavy]])
    weights = torch.from_numpy(nnls(matrix, wanted)[0])
    return length(vectors @ vectors.T, weights / weights.sum())


@given(tasks=st.integers(3, 7), seed=st.integers(0, 10**6), shared=st.floats(-1, 2), size=st.integers(2, 40))
@settings(max_examples=60)
def test_three_and_more_are_as_short_as_the_best_face(tasks: int, seed: int, shared: float, size: int) -> None:
    products = gram(gradients(tasks, size, seed, shared=shared))
    weights = min_norm(products)
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights >= 0).all()
    best = enumerated(products)
    assert length(products, weights) <= best + 1e-4 * float(products.diagonal().min())


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("tasks", [3, 4, 6])
def test_agrees_with_slsqp_and_nnls(tasks: int, seed: int) -> None:
    vectors = gradients(tasks, 30, seed, shared=0.7)
    vectors = vectors / vectors.norm(dim=1).mean()
    products = gram(vectors)
    found = minimize(  # type: ignore[call-overload]
        lambda a: float(a @ products.numpy() @ a),
        np.full(tasks, 1 / tasks),
        method="SLSQP",
        bounds=[(0, 1)] * tasks,
        constraints=LinearConstraint(np.ones((1, tasks)), 1, 1),
        options={"ftol": 1e-12, "maxiter": 500},
    )
    weights = min_norm(products)
    # SLSQP may end with status 8, at the minimum but for rounding: what it found is what counts.
    assert length(products, weights) <= float(found.fun) * (1 + 1e-5)
    assert length(products, weights) == pytest.approx(float(found.fun), rel=1e-2)
    assert length(products, weights) == pytest.approx(by_nnls(vectors), rel=1e-4)


@given(seed=st.integers(0, 10**6), shared=st.floats(-2, 4))
@settings(max_examples=100)
def test_two_tasks_are_exact(seed: int, shared: float) -> None:
    products = gram(gradients(2, 5, seed, shared=shared))
    grid = torch.linspace(0.001, 0.999, 9981, dtype=torch.float64)
    points = torch.stack([grid, 1 - grid], 1)
    brute = float(((points @ products) * points).sum(1).min())
    weights = min_norm(products)
    assert 0.001 - 1e-9 <= float(weights[0]) <= 0.999 + 1e-9 or length(products, weights) <= brute
    assert length(products, weights) <= brute * (1 + 1e-9)


def test_the_edges_of_two_tasks() -> None:
    # The first gradient alone is the shortest, then the second, then what lies between them.
    assert min_norm(torch.tensor([[1.0, 2.0], [2.0, 9.0]])).tolist() == [0.999, pytest.approx(0.001)]
    assert min_norm(torch.tensor([[9.0, 2.0], [2.0, 1.0]])).tolist() == [pytest.approx(0.001), 0.999]
    assert min_norm(torch.tensor([[4.0, 0.0], [0.0, 1.0]])).tolist() == pytest.approx([0.2, 0.8])
    assert min_norm(torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).tolist() == pytest.approx([0.5, 0.5])
    assert min_norm(torch.tensor([[7.0]])).tolist() == [1.0]


def test_the_combination_descends_for_every_task() -> None:
    vectors = gradients(4, 50, 3, shared=0.5)
    combined = min_norm(gram(vectors)) @ vectors
    # At the shortest point of the hull, no task's gradient has a smaller product with it than its own square.
    assert ((vectors @ combined) >= float(combined @ combined) * (1 - 1e-3)).all()


def test_opposite_gradients_cancel() -> None:
    vectors = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], dtype=torch.float64)
    weights = min_norm(gram(vectors))
    assert length(gram(vectors), weights) == pytest.approx(0, abs=1e-6)


def test_normalisers_by_hand() -> None:
    losses, squares = torch.tensor([2.0, 40.0]), torch.tensor([9.0, 16.0])
    assert normalisers("none", losses, squares).tolist() == [1, 1]
    assert normalisers("l2", losses, squares).tolist() == pytest.approx([3 + 1e-5, 4 + 1e-5])
    assert normalisers("loss", losses, squares).tolist() == pytest.approx([2 + 1e-5, 10 + 1e-5])
    assert normalisers("loss+", losses, squares).tolist() == pytest.approx([6 + 1e-5, 10 + 1e-5])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_normalised_gradients(kind: Normalisation) -> None:
    vectors, losses = gradients(3, 20, 1, shared=0.3), torch.tensor([0.2, 2.3, 30.0])
    scale = normalisers(kind, losses, vectors.square().sum(1))
    expected = min_norm(gram(vectors / scale[:, None]))
    assert torch.allclose(balance(gram(vectors), losses, kind), expected, atol=1e-6)


def test_l2_does_not_depend_on_the_scale_of_a_gradient() -> None:
    vectors, losses = gradients(2, 20, 5), torch.ones(2)
    stretched = vectors * torch.tensor([[100.0], [1.0]])
    assert torch.allclose(
        balance(gram(vectors), losses, "l2"), balance(gram(stretched), losses, "l2"), rtol=0, atol=1e-4
    )


def test_a_solved_task_stops_nobody() -> None:
    vectors = gradients(3, 10, 0)
    vectors[1] = 0
    weights = balance(gram(vectors), torch.ones(3), "none")
    assert float(weights[1]) == 0
    assert torch.allclose(weights[[0, 2]], min_norm(gram(vectors[[0, 2]])))
    # Nor does one whose loss is nothing but rounding; where all are solved, all count.
    vectors = gradients(2, 10, 0)
    vectors[1] *= 1e-9
    assert balance(gram(vectors), torch.tensor([0.5, 1e-8]), "loss").tolist() == [1, 0]
    assert balance(gram(vectors), torch.tensor([1e-9, 1e-8]), "loss")[1] > 0
    with pytest.raises(ValueError, match="all tasks are zero"):
        balance(torch.zeros(2, 2), torch.ones(2), "loss")
