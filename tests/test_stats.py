from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from gauntlet.records import Counts
from gauntlet.stats import Rate, defense_effectiveness, pooled, ratio, spread, wilson

shares = st.floats(0, 1)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 27_000])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_wilson_agrees_with_scipy(n: int, confidence: float) -> None:
    for hits in {0, 1, n // 3, n // 2, n - 1, n}:
        wanted = binomtest(hits, n).proportion_ci(confidence, method="wilson")
        assert wilson(hits, n, confidence) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_inside(case: tuple[int, int]) -> None:
    hits, n = case
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert high - low < 1


def test_wilson_is_exact_at_the_ends() -> None:
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0


def test_wilson_of_nothing_knows_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("hits", "n"), [(-1, 5), (6, 5), (1, 0)])
def test_wilson_refuses_impossible_counts(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="legal: 0 <= hits <= n"):
        wilson(hits, n)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_wilson_refuses_impossible_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        wilson(1, 2, confidence)


def test_pooling_weighs_images_not_seeds() -> None:
    parts = [Counts(hits=1, n=1), Counts(hits=0, n=3)]
    assert pooled(parts) == Counts(hits=1, n=4)
    assert pooled([]) == Counts(hits=0, n=0)


def test_ratio_of_nothing_is_nan() -> None:
    assert ratio(Counts(hits=1, n=4)) == 0.25
    assert math.isnan(ratio(Counts(hits=0, n=0)))


def test_spread_is_the_sample_deviation_of_the_seeds() -> None:
    parts = [Counts(hits=hits, n=10) for hits in (1, 3, 8)]
    assert spread(parts) == pytest.approx(statistics.stdev([0.1, 0.3, 0.8]))


def test_spread_needs_two_seeds_that_counted() -> None:
    assert math.isnan(spread([Counts(hits=1, n=2)]))
    assert math.isnan(spread([Counts(hits=1, n=2), Counts(hits=0, n=0)]))


@pytest.mark.parametrize(
    ("undefended_clean", "clean", "undefended_asr", "asr", "wanted"),
    [
        (0.9, 0.9, 1.0, 0.0, 1.0),
        (0.9, 0.9, 1.0, 1.0, 0.5),
        (0.9, 0.8, 0.9, 0.3, 0.75),
        (0.9, 0.95, 0.5, 0.9, 0.5),
        (1.0, 0.0, 0.5, 0.5, 0.0),
    ],
)
def test_defense_effectiveness(
    undefended_clean: float, clean: float, undefended_asr: float, asr: float, wanted: float
) -> None:
    assert defense_effectiveness(undefended_clean, clean, undefended_asr, asr) == pytest.approx(wanted)


@given(shares, shares, shares, shares)
def test_defense_effectiveness_is_a_share(a: float, b: float, c: float, d: float) -> None:
    assert 0 <= defense_effectiveness(a, b, c, d) <= 1


def test_rate_pools_and_keeps_the_spread() -> None:
    rate = Rate.of([Counts(hits=9, n=10), Counts(hits=7, n=10)])
    assert (rate.hits, rate.n, rate.value) == (16, 20, 0.8)
    assert rate.spread == pytest.approx(statistics.stdev([0.9, 0.7]))
    assert rate.interval == wilson(16, 20)
    assert math.isnan(Rate.of([]).value)
