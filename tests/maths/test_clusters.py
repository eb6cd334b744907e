from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FastICA
from sklearn.metrics import silhouette_score
from torch import Tensor

from gauntlet.maths import clusters
from gauntlet.maths.clusters import fast_ica, members, pca, silhouette, two_means

DIGITS = torch.tensor(load_digits().data, dtype=torch.float32)
LABELS = torch.tensor(load_digits().target)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=generator(seed))


def correlation(one: Tensor, two: Tensor) -> Tensor:
    """[D1, D2]: |correlation| of every column of one with every column of two."""
    found = np.corrcoef(one.numpy().T, two.numpy().T)[: one.shape[1], one.shape[1] :]
    return torch.tensor(np.abs(found))


# ---------------------------------------------------------------------------------------------------------- reductions


@pytest.mark.parametrize("count", [1, 10, 30])
def test_pca_is_sklearns(count: int) -> None:
    ours = pca(DIGITS, count, generator()).abs()
    theirs = np.abs(PCA(count, svd_solver="full").fit_transform(DIGITS.double().numpy()))

    assert ours.shape == theirs.shape
    assert float(np.abs(ours.numpy() - theirs).max()) < 0.01


def test_pca_gives_no_more_than_there_is() -> None:
    found = pca(DIGITS, 200, generator())

    assert found.shape == DIGITS.shape
    assert float(found.square().sum()) == pytest.approx(float((DIGITS - DIGITS.mean(0)).square().sum()), rel=1e-5)
    assert pca(DIGITS[:3], 10, generator()).shape == (3, 3)
    assert pca(DIGITS[:0], 10, generator()).shape == (0, 0)


@pytest.mark.parametrize("value", [0.0, 0.1, -12345.67, 1e-20])
def test_equal_points_are_reduced_to_one_point(value: float) -> None:
    points = torch.full((1001, 130), value)

    assert not pca(points, 10, generator()).any()
    assert fast_ica(points, 10, generator()).tolist() == [[0.0]] * 1001


def test_ica_separates_mixed_sources() -> None:
    draws = torch.rand(4000, 4, generator=generator(1))
    sources = torch.stack([draws[:, 0], (draws[:, 1] < 0.1).float(), draws[:, 2].log(), draws[:, 3] ** 3], 1)
    mixed = sources @ noise(4, 30, 2) + 5
    found = fast_ica(mixed, 4, generator())

    assert found.mean(0) == pytest.approx(torch.zeros(4), abs=1e-3)
    assert found.T @ found / 4000 == pytest.approx(torch.eye(4), abs=1e-3)
    assert correlation(found, sources).amax(0).min() > 0.99


def test_ica_finds_sklearns_components() -> None:
    points = DIGITS[LABELS == 3]
    ours = fast_ica(points, 3, generator())
    theirs = FastICA(3, max_iter=1000, random_state=0).fit_transform(points.numpy())

    assert correlation(ours, torch.tensor(theirs)).amax(0).min() > 0.99


def test_ica_leaves_out_directions_without_variance() -> None:
    assert fast_ica(noise(300, 2, 0) @ noise(2, 40, 1), 10, generator()).shape == (300, 2)


# ------------------------------------------------------------------------------------------------------------- k-means


def inertia(points: Tensor, labels: Tensor) -> float:
    parts = [points[labels == cluster].double() for cluster in set(labels.tolist())]
    return sum(float((part - part.mean(0)).square().sum()) for part in parts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=30))
def test_on_a_line_the_split_is_the_best_of_all(values: list[int]) -> None:
    points = torch.tensor(values, dtype=torch.float32)[:, None]
    found = two_means(points)
    ordered = sorted(set(values))
    best = min(
        (inertia(points, (points[:, 0] > low).long()) for low, _ in pairwise(ordered)),
        default=0.0,
    )

    assert inertia(points, found) == pytest.approx(best, abs=1e-3, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 80), st.integers(1, 12), st.integers(0, 1000))
def test_sklearns_lloyd_finds_nothing_to_move(rows: int, columns: int, seed: int) -> None:
    points = noise(rows, columns, seed)
    found = two_means(points)
    centres = torch.stack([points[found == cluster].mean(0) for cluster in range(2)])
    theirs = KMeans(2, init=centres.numpy(), n_init=1, max_iter=100).fit(points.numpy())

    assert theirs.inertia_ == pytest.approx(inertia(points, found), rel=1e-4, abs=1e-5)
    assert theirs.labels_.tolist() == found.tolist()


@pytest.mark.parametrize("label", range(10))
def test_no_worse_than_sklearns_best_of_twenty(label: int) -> None:
    points = pca(DIGITS[label == LABELS], 10, generator())
    theirs = KMeans(2, n_init=20, random_state=0).fit(points.numpy())

    assert inertia(points, two_means(points)) <= theirs.inertia_ * 1.002


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 15), st.integers(0, 1000))
def test_two_heaps_are_told_apart(one: int, two: int, columns: int, seed: int) -> None:
    truth = torch.cat([torch.zeros(one), torch.ones(two)])[torch.randperm(one + two, generator=generator(seed))]
    apart = torch.nn.functional.normalize(noise(1, columns, seed), dim=1) * 30
    found = two_means(noise(one + two, columns, seed + 1) + truth[:, None] * apart)

    assert found.tolist() in (truth.long().tolist(), (1 - truth).long().tolist())


@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
@pytest.mark.parametrize("rows", [1, 2, 1001])
def test_equal_points_make_one_cluster(rows: int, value: float) -> None:
    found = two_means(torch.full((rows, 5), value))

    assert found.tolist() == [0] * rows


# ---------------------------------------------------------------------------------------------------------- silhouette


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 60), st.integers(1, 6), st.integers(2, 4), st.integers(0, 1000))
def test_the_silhouette_is_sklearns(rows: int, columns: int, kinds: int, seed: int) -> None:
    points = noise(rows, columns, seed)
    labels = torch.randint(0, kinds, (rows,), generator=generator(seed))
    if not 1 < len(set(labels.tolist())) < rows:
        return

    assert silhouette(points, labels) == pytest.approx(silhouette_score(points, labels), abs=1e-5)


def test_parts_of_the_silhouette_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = silhouette(DIGITS, LABELS)
    monkeypatch.setattr(clusters, "_DISTANCES", 100 * len(DIGITS))

    assert whole == pytest.approx(silhouette_score(DIGITS, LABELS), abs=1e-5)
    assert silhouette(DIGITS, LABELS) == pytest.approx(whole, abs=1e-6)


def test_one_cluster_or_equal_points_have_no_silhouette() -> None:
    assert silhouette(noise(5, 2, 0), torch.zeros(5, dtype=torch.int64)) == 0
    assert silhouette(torch.ones(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])) == 0


# ------------------------------------------------------------------------------------------------------------- classes


@given(st.lists(st.integers(0, 12), max_size=50))
def test_members_are_every_class_that_occurs(values: list[int]) -> None:
    labels = torch.tensor(values, dtype=torch.int64)
    found = {label: index.tolist() for label, index in members(labels)}

    assert found == {label: [at for at, value in enumerate(values) if value == label] for label in sorted(set(values))}
    assert list(found) == sorted(found)
