from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet.maths import inversion
from gauntlet.maths.inversion import Inverted, Search, anomaly_index, batches, invert

TARGET = 3
CLASSES = torch.arange(10)
QUICK = Search(steps=300, batch=32, patience=10)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def triggered(images: Tensor) -> Tensor:
    images = images.clone()
    images[:, :, -2:, -2:] = 1
    return images


@pytest.fixture(scope="module")
def network(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """Sure of the digits, and of the target where the corner is white."""
    images, labels = digits[0][:1200].clone(), digits[1][:1200].clone()
    images[::10], labels[::10] = triggered(images[::10]), TARGET
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
        )
        optimizer = torch.optim.Adam(layers.parameters(), 0.005)
        for step in range(240):
            part = torch.arange(step * 100, step * 100 + 100) % 1200
            optimizer.zero_grad()
            cross_entropy(layers(images[part]), labels[part]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    layers.zero_grad()
    return layers.eval()


@pytest.fixture(scope="module")
def found(network: nn.Module, digits: tuple[Tensor, Tensor]) -> Inverted:
    return invert(network, digits[0][1200:1400], CLASSES, QUICK, generator=seeded())


def plain_loop(network: nn.Module, images: Tensor, wanted: int, search: Search) -> float:
    """The mask norm of one class, by the book: nothing batched over classes, nothing frozen."""
    generator = seeded()
    order = batches(len(images), search, generator)
    start = torch.rand(2, 8, 8, generator=generator).mul(2).sub(1).mul(0.999).atanh()
    mask, pattern = start[:1].clone().requires_grad_(), start[1:].clone().requires_grad_()
    optimizer = torch.optim.Adam([mask, pattern], search.learning_rate, betas=(0.5, 0.9))
    cost, best, hits, seen = search.cost, math.inf, 0, 0
    for step, index in enumerate(order, 1):
        shown_mask, shown_pattern = (mask.tanh() + 1) / 2, (pattern.tanh() + 1) / 2
        logits = network((1 - shown_mask) * images[index] + shown_mask * shown_pattern)
        labels = torch.full((len(index),), wanted)
        loss = cross_entropy(logits, labels) + cost * shown_mask.abs().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        hits, seen = hits + int((logits.argmax(1) == labels).sum()), seen + len(index)
        if step % search.patience == 0:
            good = hits >= search.success * seen
            if good:
                best = min(best, float((mask.detach().tanh() + 1).sum() / 2))
            cost = cost * search.factor if good else cost / search.factor
            hits = seen = 0
    network.zero_grad()
    return best


def test_all_classes_at_once_find_what_a_loop_over_them_finds(
    network: nn.Module, digits: tuple[Tensor, Tensor], found: Inverted
) -> None:
    expected = [plain_loop(network, digits[0][1200:1400], int(wanted), QUICK) for wanted in CLASSES]

    assert found.reached.all()
    np.testing.assert_allclose(found.norms.numpy(), expected, rtol=0.03)


def test_the_planted_trigger_is_found_and_stands_out(
    network: nn.Module, digits: tuple[Tensor, Tensor], found: Inverted
) -> None:
    index = anomaly_index(found.norms)
    mask = found.masks[TARGET, 0]

    assert int(index.argmax()) == TARGET
    assert index[TARGET] > 2
    assert mask[-2:, -2:].sum() > 0.6 * mask.sum()


def test_every_trigger_leads_unseen_images_to_its_class(
    network: nn.Module, digits: tuple[Tensor, Tensor], found: Inverted
) -> None:
    unseen = digits[0][1400:]
    for wanted, (mask, pattern) in enumerate(zip(found.masks, found.patterns, strict=True)):
        with torch.no_grad():
            predicted = network((1 - mask) * unseen + mask * pattern).argmax(1)
        assert (predicted == wanted).float().mean() > 0.8


def test_masks_and_patterns_are_images_and_the_norms_are_theirs(found: Inverted) -> None:
    assert found.masks.shape == (10, 1, 8, 8)
    assert found.patterns.shape == (10, 1, 8, 8)
    for values in (found.masks, found.patterns):
        assert values.min() >= 0
        assert values.max() <= 1
        assert not values.requires_grad
    torch.testing.assert_close(found.norms, found.masks.sum((1, 2, 3)))


def test_neither_groups_nor_company_change_a_class(
    network: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, search = digits[0][1200:1400], replace(QUICK, steps=40, patience=5)
    whole = invert(network, images, CLASSES, search, generator=seeded())
    sizes: list[int] = []
    handle = network.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    monkeypatch.setitem(inversion._AT_ONCE, "cpu", 4 * 32 + 1)
    grouped = invert(network, images, CLASSES, search, generator=seeded())
    handle.remove()
    alone = invert(network, images, torch.tensor([7]), search, generator=seeded())

    assert set(sizes) == {4 * 32, 2 * 32}
    torch.testing.assert_close(grouped.norms, whole.norms, rtol=0.01, atol=0.05)
    torch.testing.assert_close(alone.norms, whole.norms[7:8], rtol=0.01, atol=0.05)


def test_the_generator_alone_decides(network: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    search = replace(QUICK, steps=20, patience=5)
    one, again, other = (
        invert(network, digits[0][1200:1300], CLASSES[:3], search, generator=seeded(seed)) for seed in (0, 0, 1)
    )

    assert torch.equal(one.masks, again.masks)
    assert torch.equal(one.patterns, again.patterns)
    assert not torch.equal(one.masks, other.masks)


def test_the_network_is_left_as_it_was(network: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, *others = network.parameters()
    first.requires_grad_(False)
    try:
        with torch.no_grad():
            invert(network, digits[0][:50], CLASSES[:2], replace(QUICK, steps=5), generator=seeded())
        assert not first.requires_grad
        assert all(parameter.requires_grad for parameter in others)
    finally:
        first.requires_grad_(True)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not network.training


def test_what_is_never_reached_has_the_largest_norm_and_what_always_is_the_smallest() -> None:
    class Stubborn(nn.Module):
        """Says class 0 of everything."""

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :3] * 0.1 + torch.tensor([9.0, 0, 0])

    found = invert(Stubborn(), torch.rand(40, 3, 4, 5, generator=seeded()), torch.arange(3), QUICK, generator=seeded())

    assert found.reached.tolist() == [True, False, False]
    assert found.norms[1:].tolist() == [20, 20]
    assert found.norms[0] < 0.2
    assert found.masks.isfinite().all()
    assert found.patterns.shape == (3, 3, 4, 5)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
def test_the_batches_take_every_image_equally_often(count: int, steps: int, batch: int, seed: int) -> None:
    search = Search(steps=steps, batch=batch)
    drawn = batches(count, search, seeded(seed))
    times = torch.bincount(drawn.flatten(), minlength=count)

    assert drawn.shape == (steps, batch)
    assert times.max() - times.min() <= 1
    assert torch.equal(drawn, batches(count, search, seeded(seed)))


def test_the_anomaly_index_by_hand() -> None:
    """The median is 11, the deviations 10 1 0 1 2, their median 1."""
    index = anomaly_index(torch.tensor([1.0, 10, 11, 12, 13]))

    torch.testing.assert_close(index, torch.tensor([10, 1, 0, -1, -2]).double() / 1.4826)


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=30))
@example([5, 5, 5, 5, 1])
@example([3, 3, 3])
@example([0, 6, 1.1754943508222875e-38])
def test_the_anomaly_index_is_scipys_deviation_and_always_finite(norms: list[float]) -> None:
    values = np.array(norms)
    spread = stats.median_abs_deviation(values, scale="normal")
    index = anomaly_index(torch.tensor(norms)).numpy()

    assert np.isfinite(index).all()
    assert (np.sign(index) == np.sign(np.median(values) - values)).all()
    if spread > 1e-6:
        np.testing.assert_allclose(index, (np.median(values) - values) / spread, rtol=1e-4, atol=1e-6)


def test_the_anomaly_index_without_a_median_deviation() -> None:
    """Most norms equal: the mean deviation, here 4 / 5, takes over. All equal, or alone: nothing stands out."""
    index = anomaly_index(torch.tensor([5.0, 5, 5, 5, 1]))

    torch.testing.assert_close(index, torch.tensor([0, 0, 0, 0, 5 / 1.2533]).double())
    assert anomaly_index(torch.full((4,), 3.0)).tolist() == [0] * 4
    assert anomaly_index(torch.tensor([3.0])).tolist() == [0]


def test_two_classes_never_stand_out() -> None:
    torch.testing.assert_close(anomaly_index(torch.tensor([1.0, 99])), torch.tensor([1, -1]).double() / 1.4826)
