from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet.maths.adversarial import Adversarial
from gauntlet.maths.pgd import Norm, _steepest, pgd, project, random_perturbation
from gauntlet.network import Network
from gauntlet.objective import Batch

NORMS: tuple[Norm, ...] = ("inf", "2", "1")
ORDER: dict[Norm, float] = {"inf": np.inf, "2": 2, "1": 1}
BUDGET: dict[Norm, tuple[float, float]] = {"inf": (0.2, 0.03), "2": (1.5, 0.2), "1": (6.0, 0.5)}
"""eps and step."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths(perturbation: Tensor, norm: Norm) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(perturbation.double(), ord=ORDER[norm], dim=(1, 2, 3))
    return length


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(data.target)


def layers_of(network: Network) -> nn.Sequential:
    assert isinstance(network.body, nn.Sequential)
    return network.body


@pytest.fixture
def network(trained: Network) -> Network:
    return deepcopy(trained)


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> Network:
    images, labels = digits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(256, 10),
        )
        network = Network(body, [0.3], [0.4], "4", "0")
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for step in range(60):
            part = slice(step % 9 * 200, step % 9 * 200 + 200)
            optimizer.zero_grad()
            cross_entropy(network(images[part]), labels[part]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    network.zero_grad()
    return network.eval()


def run(network: nn.Module, images: Tensor, labels: Tensor, norm: Norm, **changes: Any) -> Tensor:
    eps, step = BUDGET[norm]
    settings = {"eps": eps, "step": step, "iterations": 10, "generator": seeded(), "random_start": False}
    return pgd(network, images, labels, norm=norm, **{**settings, **changes})


def loss(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return cross_entropy(network(images), labels).item()


@pytest.mark.parametrize("norm", NORMS)
def test_the_loss_rises_and_the_predictions_fall(network: Network, digits: tuple[Tensor, Tensor], norm: Norm) -> None:
    images, labels = digits[0][:300], digits[1][:300]
    changed = run(network, images, labels, norm)

    assert (network(images).argmax(1) == labels).float().mean() > 0.95
    assert (network(changed).argmax(1) == labels).float().mean() < 0.5
    assert loss(network, changed, labels) > 10 * loss(network, images, labels)


@pytest.mark.parametrize("norm", NORMS)
def test_targeted_moves_towards_the_label(network: Network, digits: tuple[Tensor, Tensor], norm: Norm) -> None:
    images, goal = digits[0][:100], (digits[1][:100] + 1) % 10
    changed = run(network, images, goal, norm, targeted=True)

    assert loss(network, changed, goal) < loss(network, images, goal) / 2


@settings(max_examples=30, deadline=None)
@example("2", 4.0, 4.0, 4, False, 1)
@given(
    st.sampled_from(NORMS),
    st.floats(1e-3, 60),
    st.floats(1e-3, 30),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 99),
)
def test_stays_in_the_ball_and_in_the_box(
    norm: Norm, eps: float, step: float, iterations: int, random_start: bool, seed: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))
    images = torch.rand(6, 2, 4, 4, generator=seeded(seed)).round(decimals=1)
    changed = pgd(
        network,
        images,
        torch.arange(6) % 3,
        norm=norm,
        eps=eps,
        step=step,
        iterations=iterations,
        generator=seeded(seed),
        random_start=random_start,
    )

    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert lengths(changed - images, norm).max() <= eps * (1 + 1e-5) + 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", NORMS)
def test_reaches_at_least_arts_loss_within_the_same_ball(
    network: Network, digits: tuple[Tensor, Tensor], norm: Norm
) -> None:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    images, labels = digits[0][:200], digits[1][:200]
    eps, step = BUDGET[norm]
    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    order = np.inf if norm == "inf" else int(norm)
    attack = ProjectedGradientDescentPyTorch(
        classifier, norm=order, eps=eps, eps_step=step, max_iter=10, batch_size=200, verbose=False
    )
    theirs = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    ours = run(network, images, labels, norm)

    assert lengths(theirs - images, norm).max() <= eps * (1 + 1e-5)
    assert lengths(ours - images, norm).max() <= eps * (1 + 1e-5)
    assert loss(network, ours, labels) >= loss(network, theirs, labels) * (1 - 1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_the_network_is_left_as_it_was(network: Network, digits: tuple[Tensor, Tensor], norm: Norm) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    layers = layers_of(network)
    layers[5].train()
    images = digits[0][:20].clone()
    run(network, images, digits[1][:20], norm)

    assert torch.equal(images, digits[0][:20])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [module.training for module in layers] == [False] * 5 + [True, False]


@pytest.mark.parametrize("norm", NORMS)
def test_works_under_no_grad_and_in_channels_last(network: Network, digits: tuple[Tensor, Tensor], norm: Norm) -> None:
    images, labels = digits[0][:40], digits[1][:40]
    expected = run(network, images, labels, norm)
    with torch.no_grad():
        changed = run(network, images.to(memory_format=torch.channels_last), labels, norm)

    torch.testing.assert_close(changed, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_the_generator_alone_decides_and_batches_do_not(
    network: Network, digits: tuple[Tensor, Tensor], norm: Norm
) -> None:
    images, labels = digits[0][:40], digits[1][:40]
    first = run(network, images, labels, norm, random_start=True)
    again = run(network, images, labels, norm, random_start=True, batch=7)
    other = run(network, images, labels, norm, random_start=True, generator=seeded(1))

    torch.testing.assert_close(again, first, atol=1e-4, rtol=0)
    assert not torch.allclose(other, first, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_moves_even_where_the_gradient_is_almost_nothing(norm: Norm) -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :2] * 1e-30

    images = torch.full((1, 1, 2, 2), 0.5)
    changed = run(Flat(), images, torch.tensor([0]), norm, step=0.05, iterations=1, eps=1.0)

    assert lengths(changed - images, norm).item() == pytest.approx(0.05, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.floats(0.05, 4), st.integers(0, 1000))
def test_the_l1_projection_is_the_nearest_point(size: int, eps: float, seed: int) -> None:
    """Against a quadratic programme over the positive and the negative parts."""
    point = torch.randn(1, 1, 1, size, generator=seeded(seed)) * 2
    got = project(point, "1", eps).flatten().double().numpy()
    wanted = point.flatten().double().numpy()

    def distance(parts: NDArray[np.float64]) -> float:
        return float(((parts[:size] - parts[size:] - wanted) ** 2).sum())

    solved = optimize.minimize(
        distance,
        np.zeros(2 * size),
        bounds=optimize.Bounds(0, np.inf),
        constraints=optimize.LinearConstraint(np.ones((1, 2 * size)), ub=eps),
        method="SLSQP",
        tol=1e-14,
    )
    best = solved.x[:size] - solved.x[size:]

    assert np.abs(got).sum() <= eps * (1 + 1e-5)
    assert np.linalg.norm(got - wanted) <= np.linalg.norm(best - wanted) + 1e-4
    np.testing.assert_allclose(got, best, atol=5e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_a_projection_leaves_the_inside_alone_and_puts_the_outside_on_the_border(norm: Norm) -> None:
    points = torch.randn(50, 3, 4, 4, generator=seeded())
    inside = project(points, norm, float(lengths(points, norm).max()) * 1.01)
    border = project(points, norm, 0.5)

    torch.testing.assert_close(inside, points)
    torch.testing.assert_close(lengths(border, norm), torch.full((50,), 0.5, dtype=torch.double), atol=1e-5, rtol=0)
    torch.testing.assert_close(project(border, norm, 0.5), border)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.floats(0.01, 5), st.integers(0, 1000))
def test_the_l1_step_solves_the_linear_programme(size: int, step: float, seed: int) -> None:
    points = torch.rand(1, 1, 1, size, generator=seeded(seed)).round(decimals=1)
    gradient = torch.randn(1, 1, 1, size, generator=seeded(seed + 1))
    got = _steepest(points, gradient, "1", step).flatten().double().numpy()
    x, g = points.flatten().double().numpy(), gradient.flatten().double().numpy()

    solved = optimize.linprog(
        np.concatenate([-g, g]),
        A_ub=[[1] * (2 * size)],
        b_ub=[step],
        bounds=[(0, room) for room in 1 - x] + [(0, room) for room in x],
    )
    assert np.abs(got).sum() <= step + 1e-5
    assert ((x + got) >= -1e-6).all()
    assert ((x + got) <= 1 + 1e-6).all()
    assert g @ got == pytest.approx(-float(solved.fun or 0), abs=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_fill_the_ball_evenly(norm: Norm) -> None:
    """The share of a uniform ball of dimension 4 within radius r is r^4."""
    drawn = random_perturbation(torch.zeros(20_000, 1, 2, 2), norm, 3.0, seeded())
    inside = lengths(drawn, norm) / 3

    assert inside.max() <= 1 + 1e-6
    for radius in (0.5, 0.8, 0.95):
        assert (inside < radius).double().mean().item() == pytest.approx(radius**4, abs=0.015)
    torch.testing.assert_close(drawn.mean((0, 1)), torch.zeros(2, 2), atol=0.05, rtol=0)


def test_the_adversarial_objective_learns_pgd_images_and_restores_every_mode(
    network: Network, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits[0][:100], digits[1][:100]
    network.train()
    layers = layers_of(network)
    layers[1].eval()
    running = layers[1].get_buffer("running_mean").clone()
    objective = Adversarial("inf", eps=0.2, step=0.05, iterations=5)
    value = objective.loss(network, Batch(images, labels, torch.arange(100), seeded()))
    modes = [module.training for module in layers]
    frozen = torch.equal(layers[1].get_buffer("running_mean"), running)
    network.eval()

    assert value.requires_grad
    assert value.item() > 5 * loss(network, images, labels)
    assert modes == [True, False, True, True, True, True, True]
    assert frozen


def test_the_adversarial_objective_names_all_its_settings() -> None:
    assert Adversarial("2", eps=1.0, step=0.1, iterations=3, random_start=False).spec() == {
        "objective": "adversarial",
        "norm": "2",
        "eps": 1.0,
        "step": 0.1,
        "iterations": 3,
        "random_start": False,
    }
