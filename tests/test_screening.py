from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

import gauntlet.guard
from gauntlet import screening
from gauntlet.defending import defender_view
from gauntlet.defense import InputDetector, Scorer
from gauntlet.errors import GauntletError, LeakError
from gauntlet.guard import Role
from gauntlet.images import Images
from gauntlet.mounting import mount
from gauntlet.pipeline import Context, tools_for
from gauntlet.screening import Screen, above, auroc, screen_of, threshold
from gauntlet.views import DefenderView
from tests.sample_cases import CaseMaker

CPU = torch.device("cpu")
SCORES = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60)
TIED = st.lists(st.integers(-3, 3), min_size=1, max_size=40)
"""Few values, so that most scores are tied."""


@given(SCORES | TIED, st.floats(0.001, 0.999))
def test_the_threshold_is_the_lowest_that_keeps_the_rate(clean: list[float], rate: float) -> None:
    scores = torch.tensor(clean, dtype=torch.float32)
    limit = threshold(scores, rate)
    lower = scores[scores < limit]

    assert limit in scores.tolist()
    allowed = round(rate * len(scores), 6)
    assert above(scores, limit).hits <= allowed
    if len(lower):
        assert above(scores, float(lower.max())).hits > allowed


@pytest.mark.parametrize("size", [1, 7, 50, 100, 375, 1250])
def test_without_ties_the_rate_is_used_up(size: int) -> None:
    scores = torch.randperm(size, generator=torch.Generator().manual_seed(size)).float()

    for thousandth in range(1, 1000):
        rate = thousandth / 1000
        assert above(scores, threshold(scores, rate)).hits == int(Fraction(str(rate)) * size), rate


def test_scores_that_are_all_equal_raise_no_alarm() -> None:
    scores = torch.full((9,), -0.25)

    assert threshold(scores, 0.9) == -0.25
    assert above(scores, threshold(scores, 0.9)).hits == 0


@given(TIED | SCORES, TIED | SCORES)
def test_the_auroc_is_scikit_learns(clean: list[float], triggered: list[float]) -> None:
    truth = [0] * len(clean) + [1] * len(triggered)
    found = auroc(torch.tensor(clean, dtype=torch.float32), torch.tensor(triggered, dtype=torch.float32))

    assert found == pytest.approx(roc_auc_score(truth, np.array(clean + triggered, np.float32)), abs=1e-12)


@given(TIED, TIED)
def test_the_auroc_counts_pairs_and_turns_with_the_score(clean: list[float], triggered: list[float]) -> None:
    one, two = torch.tensor(clean, dtype=torch.float32), torch.tensor(triggered, dtype=torch.float32)
    wins = (two[:, None] > one).double() + 0.5 * (two[:, None] == one)

    assert auroc(one, two) == pytest.approx(float(wins.mean()), abs=1e-12)
    assert auroc(-one, -two) == pytest.approx(1 - auroc(one, two), abs=1e-12)
    assert auroc(one, one) == pytest.approx(0.5)


def test_the_auroc_of_no_pairs_is_unknown() -> None:
    assert np.isnan(auroc(torch.empty(0), torch.ones(3)))
    assert np.isnan(auroc(torch.ones(3), torch.empty(0)))


@dataclass(frozen=True)
class Brightest(InputDetector):
    """Scores by brightness beside the images that it was made from, and notes who asked."""

    learnt: ClassVar[int] = 30

    false_positive_rate: float = 0.1
    seen: list[Tensor] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)

    def learns_from(self, reserve: int) -> int:
        return min(self.learnt, reserve)

    def scorer(self, view: DefenderView) -> Scorer:
        self.seen.append(view.reserve.images())
        self.roles.append(gauntlet.guard._turn.role)

        def score(images: Images) -> Tensor:
            self.roles.append(gauntlet.guard._turn.role)
            return images.mean((1, 2, 3))

        return score


@pytest.fixture
def view(context: Context, make_case: CaseMaker, monkeypatch: pytest.MonkeyPatch) -> DefenderView:
    case = make_case("none")
    tools = tools_for(case, 0, context)
    mounted = mount(case.attack, tools).value
    monkeypatch.setattr(screening, "name_of", lambda _plugin: "brightest")
    return defender_view(Brightest(), case.attack, mounted, mounted.network, 100, tools)


def brightness(images: Tensor) -> Tensor:
    return images.float().div(255).mean((1, 2, 3))


def test_the_threshold_comes_from_what_the_scorer_has_not_seen(view: DefenderView) -> None:
    detector = Brightest()
    screen = screen_of(detector, view)
    images = view.reserve.images()

    (seen,) = detector.seen
    assert torch.equal(seen, images[:30])
    assert screen.limit == pytest.approx(threshold(brightness(images[30:]), 0.1))
    assert above(screen.scores(images[30:]), screen.limit).hits == 7


def test_both_parts_of_the_reserve_are_stratified(view: DefenderView) -> None:
    for part in (view.reserve.labels[:30], view.reserve.labels[30:]):
        counts = torch.bincount(part, minlength=10)
        assert counts.max() - counts.min() <= 2


def test_a_detector_runs_as_the_defender_and_never_sees_the_test(view: DefenderView, context: Context) -> None:
    detector = Brightest()
    screen_of(detector, view)

    assert set(detector.roles) == {Role.DEFENDER}
    assert gauntlet.guard._turn.role is Role.ENGINE

    class Peeking(Brightest):
        def scorer(self, view: DefenderView) -> Scorer:
            context.datasets["digits"].test.open()
            raise AssertionError

    with pytest.raises(LeakError):
        screen_of(Peeking(), view)


@pytest.mark.parametrize("learnt", [100, 5000])
def test_a_detector_that_learns_from_the_whole_reserve_is_refused(view: DefenderView, learnt: int) -> None:
    class Greedy(Brightest):
        pass

    Greedy.learnt = learnt
    with pytest.raises(GauntletError, match="leaves none for its threshold"):
        screen_of(Greedy(), view)


def test_the_default_is_half(view: DefenderView) -> None:
    assert InputDetector().learns_from(101) == 50


def test_a_detector_with_a_limit_of_its_own_learns_from_everything(view: DefenderView) -> None:
    class Sure(Brightest):
        limit: ClassVar[float | None] = 0.25

        def learns_from(self, reserve: int) -> int:
            return InputDetector.learns_from(self, reserve)

    detector = Sure()
    screen = screen_of(detector, view)

    assert torch.equal(detector.seen[0], view.reserve.images())
    assert screen.limit == 0.25


def screen_with(scorer: Any, view: DefenderView) -> Screen:
    return Screen("brightest", scorer, 0.0, CPU, view.draws, view.reserve.images())


BAD: dict[str, Any] = {
    "too few": lambda images: images[1:].mean((1, 2, 3)),
    "columns": lambda images: images.mean((2, 3)),
    "infinite": lambda images: (images.mean((1, 2, 3)) + 1) / 0,
    "nothing": lambda _images: None,
    "numpy": lambda images: images.mean((1, 2, 3)).numpy(),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_scores_that_are_no_finite_number_an_image_are_refused(view: DefenderView, bad: Any) -> None:
    screen = screen_with(bad, view)
    with pytest.raises(
        GauntletError, match=r"(finite number for each image is due|due: a finite float tensor \[100\])"
    ):
        screen.scores(view.reserve.images())


def test_images_come_as_floats_and_in_parts(view: DefenderView, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, largest = [], []

    def score(images: Images) -> Tensor:
        sizes.append(len(images))
        largest.append(float(images.max()))
        return images.double().mean((1, 2, 3))

    monkeypatch.setattr(screening, "PART", 40)
    scores = screen_with(score, view).scores(view.reserve.images())

    assert sizes == [40, 40, 20, 16]
    assert max(largest) == 1
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, brightness(view.reserve.images()))


def standardised(images: Images) -> Tensor:
    found = images.mean((1, 2, 3))
    return (found - found.mean()) / found.std()


BY_THE_BATCH: dict[str, Scorer] = {
    "mean image": lambda images: images.mean(0).std().repeat(len(images)),
    "standardised": standardised,
    "order": lambda images: images.mean((1, 2, 3)).flip(0),
    "largest": lambda images: images.mean((1, 2, 3)) / images.mean((1, 2, 3)).max(),
}


@pytest.mark.parametrize("scorer", BY_THE_BATCH.values(), ids=BY_THE_BATCH.keys())
def test_a_detector_that_looks_at_the_batch_is_refused(view: DefenderView, scorer: Scorer) -> None:
    """A batch is all clean or all triggered: its statistics tell which."""
    with pytest.raises(GauntletError, match="brightest judges images by what else is in the batch"):
        screen_with(scorer, view).scores(view.reserve.images())


def test_a_detector_may_draw_and_draws_the_same_in_every_run(view: DefenderView) -> None:
    own = torch.Generator().manual_seed(5)
    noisy = screen_with(lambda images: torch.rand(len(images), generator=own), view)
    noisy.scores(view.reserve.images())

    screen = screen_with(lambda images: images.mean((1, 2, 3)) + torch.rand(len(images)), view)
    before = torch.get_rng_state()
    torch.testing.assert_close(screen.scores(view.reserve.images()), screen.scores(view.reserve.images()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_scorer_that_is_no_function_is_named(view: DefenderView) -> None:
    class Empty(Brightest):
        def scorer(self, view: DefenderView) -> Scorer:
            return None  # type: ignore[return-value]

    with pytest.raises(GauntletError, match="brightest's scorer gave NoneType; due: a function"):
        screen_of(Empty(), view)
