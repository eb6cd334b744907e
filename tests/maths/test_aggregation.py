from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from gauntlet.maths.aggregation import (
    clipped,
    cosine_majority,
    flame,
    krum_scores,
    median,
    median_norm,
    most_tolerated,
    multi_krum,
    noisy,
    trimmed_mean,
)


def updates(seed: int, size: int = 7, width: int = 5) -> torch.Tensor:
    return torch.randn(size, width, generator=torch.Generator().manual_seed(seed))


def with_outlier(size: int = 9) -> torch.Tensor:
    """Updates that agree, and last one that is ten times as long and points elsewhere."""
    honest = torch.tensor([1.0, 1.0, 1.0, 0.0]) + 0.1 * updates(3, size - 1, 4)
    return torch.cat([honest, torch.tensor([[-10.0, 5.0, -10.0, 10.0]])])


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_median_and_its_norm_are_numpys(seed: int, size: int) -> None:
    given_ = updates(seed, size)
    np.testing.assert_allclose(median(given_).numpy(), np.median(given_.numpy(), axis=0), rtol=1e-6)
    norms = np.linalg.norm(given_.numpy(), axis=1)
    assert median_norm(given_) == pytest.approx(np.median(norms), rel=1e-5)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.2, 0.4]))
def test_trimmed_mean_is_scipys(seed: int, share: float) -> None:
    given_ = updates(seed, 10)
    np.testing.assert_allclose(
        trimmed_mean(given_, round(share * 10)).numpy(), trim_mean(given_.numpy(), share, axis=0), atol=1e-6
    )


def test_trimming_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing of 4"):
        trimmed_mean(updates(0, 4), 2)


@given(st.integers(0, 10**6), st.floats(0.01, 10))
def test_clipping_bounds_the_length_and_keeps_the_direction(seed: int, bound: float) -> None:
    given_ = updates(seed)
    cut = clipped(given_, bound)
    assert (cut.norm(dim=1) <= bound * (1 + 1e-5)).all()
    torch.testing.assert_close(torch.cosine_similarity(cut, given_), torch.ones(7))
    short = given_.norm(dim=1) <= bound
    assert torch.equal(cut[short], given_[short])


def test_clipping_leaves_an_update_of_zeros_alone() -> None:
    assert torch.equal(clipped(torch.zeros(2, 3), 1.0), torch.zeros(2, 3))


@given(st.integers(0, 10**6), st.integers(3, 8))
def test_krum_scores_are_those_of_brute_force(seed: int, size: int) -> None:
    given_ = updates(seed, size)
    for assumed in range(most_tolerated(size) + 1):
        scores = krum_scores(given_, assumed)
        for place in range(size):
            others = [other for other in range(size) if other != place]
            sums = [
                sum(float((given_[place] - given_[other]).double().square().sum()) for other in chosen)
                for chosen in itertools.combinations(others, size - assumed - 2)
            ]
            assert float(scores[place]) == pytest.approx(min(sums), rel=1e-5)


def test_krum_is_one_update_and_multi_krum_the_mean_of_the_best() -> None:
    given_ = updates(1, 9)
    order = krum_scores(given_, 2).argsort()
    assert torch.equal(multi_krum(given_, 2, 1), given_[order[0]])
    torch.testing.assert_close(multi_krum(given_, 2, 4), given_[order[:4]].mean(0))
    torch.testing.assert_close(multi_krum(given_, 2, 9), given_.mean(0))


@pytest.mark.parametrize(("size", "assumed"), [(9, 4), (3, 1), (2, 0)])
def test_krum_refuses_more_attackers_than_it_is_proved_for(size: int, assumed: int) -> None:
    with pytest.raises(ValueError, match="tolerates 0 to"):
        krum_scores(updates(0, size), assumed)


def test_noise_has_its_deviation_and_its_seed() -> None:
    step = torch.ones(20000)
    first = noisy(step, 0.3, torch.Generator().manual_seed(4))
    assert torch.equal(first, noisy(step, 0.3, torch.Generator().manual_seed(4)))
    assert float((first - step).std()) == pytest.approx(0.3, rel=0.03)
    assert float((first - step).mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(noisy(step, 0.0, torch.Generator().manual_seed(4)), step)


def test_the_majority_leaves_the_outlier_out() -> None:
    found = cosine_majority(with_outlier())
    assert found.tolist()[-1] is False
    assert int(found.sum()) > len(found) / 2


def test_the_majority_of_updates_that_agree_is_most_of_them_and_two_are_all() -> None:
    assert cosine_majority(torch.ones(6, 3)).all()
    assert cosine_majority(updates(0, 2)).all()
    assert cosine_majority(torch.zeros(5, 3)).any()


def test_flame_clips_to_the_median_norm_of_all() -> None:
    given_ = with_outlier()
    mean, bound = flame(given_)
    assert bound == pytest.approx(float(np.median(np.linalg.norm(given_.numpy(), axis=1))), rel=1e-5)
    torch.testing.assert_close(mean, clipped(given_[cosine_majority(given_)], bound).mean(0))


@pytest.mark.parametrize("name", ["median", "trimmed mean", "krum", "multi-krum", "flame"])
def test_a_robust_aggregate_ignores_one_planted_outlier(name: str) -> None:
    given_ = with_outlier()
    honest = given_[:-1].mean(0)
    found = {
        "median": median(given_),
        "trimmed mean": trimmed_mean(given_, 1),
        "krum": multi_krum(given_, 1, 1),
        "multi-krum": multi_krum(given_, 1, 8),
        "flame": flame(given_)[0],
    }[name]
    assert float((found - honest).norm()) < 0.4
    assert float((given_.mean(0) - honest).norm()) > 1
