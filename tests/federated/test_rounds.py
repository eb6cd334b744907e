from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gauntlet.errors import DivergedError, GauntletError, SettingError
from gauntlet.federated import flower as flower_module
from gauntlet.federated.federation import average
from gauntlet.federated.flower import flower
from gauntlet.federated.rounds import Federated, collect, in_process
from gauntlet.federated.split import dirichlet_split, even_split, shares_to_counts
from gauntlet.federated.updates import flatten, load
from gauntlet.maths.aggregation import median
from gauntlet.network import Network


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 12), st.sampled_from([0.01, 0.5, 10.0]), st.integers(0, 1000))
def test_a_dirichlet_split_gives_every_image_to_one_user(users: int, alpha: float, seed: int) -> None:
    labels = torch.randint(0, 4, (97,), generator=seeded(seed))
    parts = dirichlet_split(labels, users, alpha, seeded(seed))
    assert len(parts) == users
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(97))
    again = dirichlet_split(labels, users, alpha, seeded(seed))
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


def test_a_small_alpha_leaves_a_class_with_few_users() -> None:
    labels = torch.arange(10).repeat_interleave(200)

    def largest_share(alpha: float) -> float:
        parts = dirichlet_split(labels, 20, alpha, seeded(0))
        counts = torch.stack([torch.bincount(labels[part], minlength=10) for part in parts])
        return float((counts.max(0).values / 200).mean())

    assert largest_share(0.05) > 0.5
    assert largest_share(1000.0) < 0.07


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=9), st.integers(0, 200))
def test_counts_add_up_and_are_off_by_less_than_one(weights: list[float], total: int) -> None:
    shares = np.array(weights) / sum(weights)
    counts = shares_to_counts(shares, total)
    assert sum(counts) == total
    assert all(abs(count - share * total) < 1 + 1e-9 for count, share in zip(counts, shares, strict=True))


def test_an_even_split_is_a_random_partition() -> None:
    parts = even_split(23, 5, seeded(1))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(23))
    assert sorted(map(len, parts)) == [4, 4, 5, 5, 5]
    assert not torch.equal(parts[0], torch.arange(5))


def small() -> Network:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    return Network(body, [0.5], [0.25], "2", "0").place(torch.device("cpu"))


def test_a_network_survives_the_way_through_a_vector() -> None:
    network, other = small(), small()
    for value in other.body.state_dict().values():
        value.zero_()
    with torch.no_grad():
        network(torch.rand(4, 1, 4, 4))
    state = flatten(network)
    assert len(state) == 3 * 9 + 3 + 2 * 3 + 2 * 3 + 12 * 2 + 2
    load(other, state)
    counter = "1.num_batches_tracked"
    for name, value in network.body.state_dict().items():
        assert torch.equal(value, other.body.state_dict()[name]) != (name == counter)
    assert int(other.body.state_dict()[counter]) == 0
    assert torch.equal(flatten(other), state)
    assert other.normalise.mean.item() == 0.5


def test_a_variance_never_falls_below_zero_and_another_length_is_refused() -> None:
    network = small()
    load(network, torch.full_like(flatten(network), -1.0))
    assert network.body.state_dict()["1.running_var"].tolist() == [0, 0, 0]
    assert network.body.state_dict()["1.running_mean"].tolist() == [-1, -1, -1]
    with pytest.raises(GauntletError, match="is no network of this form"):
        load(network, torch.zeros(3))


def federated(
    aggregate: Callable[[Tensor, float, int], Tensor] = average,
    update: Callable[[int, int, Tensor], Tensor] | None = None,
) -> Federated:
    """Four rounds of three of six users whose updates anybody can compute."""

    def towards(number: int, user: int, state: Tensor) -> Tensor:
        return torch.full_like(state, float(user)) * 0.1 * number - 0.5 * state

    return Federated(
        start=torch.linspace(-1, 1, 5),
        rounds=4,
        rate=0.75,
        sample=lambda number: [(number + step) % 6 for step in (4, 0, 2)],
        update=update or towards,
        aggregate=aggregate,
    )


def test_the_loop_adds_eta_by_n_times_the_sum() -> None:
    state = torch.linspace(-1, 1, 5)
    eta, users = 1.5, 6
    for number, found in enumerate(in_process(federated()), start=1):
        chosen = [(number + step) % 6 for step in (4, 0, 2)]
        state = state + eta / users * sum(torch.full((5,), float(user)) * 0.1 * number - 0.5 * state for user in chosen)
        torch.testing.assert_close(found, state)


def test_an_update_that_is_not_finite_and_a_step_of_another_form_are_refused() -> None:
    with pytest.raises(DivergedError, match="round 1: an update is not finite"):
        list(in_process(federated(update=lambda _number, _user, state: state * torch.nan)))
    with pytest.raises(GauntletError, match=r"due: a finite vector of 5"):
        list(in_process(federated(lambda updates, _rate, _number: updates)))


def test_snapshots_are_thinned_to_what_may_be_kept_and_end_with_the_last_round() -> None:
    def states() -> Iterator[Tensor]:
        return (torch.full((10,), float(number)) for number in range(1, 8))

    numbers, kept = collect(states(), 7, 10**6)
    assert numbers.tolist() == [1, 2, 3, 4, 5, 6, 7]
    numbers, kept = collect(states(), 7, 3 * 40)
    assert numbers.tolist() == [3, 6, 7]
    assert kept[:, 0].tolist() == [3, 6, 7]
    assert collect(states(), 7, 1)[0].tolist() == [7]


@pytest.mark.parametrize("aggregate", [average, lambda updates, rate, _number: rate * median(updates)])
def test_flower_gives_the_same_networks(aggregate: Callable[[Tensor, float, int], Tensor]) -> None:
    pytest.importorskip("flwr", reason="Flower is not installed")
    ours, theirs = list(in_process(federated(aggregate))), list(flower(federated(aggregate)))
    assert len(ours) == len(theirs) == 4
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_an_error_of_a_user_comes_through_flower() -> None:
    pytest.importorskip("flwr", reason="Flower is not installed")

    def fail(_number: int, _user: int, _state: Tensor) -> Tensor:
        raise DivergedError("diverged")

    with pytest.raises(DivergedError, match="diverged"):
        list(flower(federated(update=fail)))


def test_flower_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_module, "available", lambda: False)
    with pytest.raises(SettingError, match=r"install 'backdoor-gauntlet\[federated\]'"):
        list(flower(federated()))
