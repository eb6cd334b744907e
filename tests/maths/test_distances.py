from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics.pairwise import paired_cosine_distances, paired_euclidean_distances, paired_manhattan_distances
from torch import Tensor

from gauntlet.maths import distances
from gauntlet.maths.distances import per_image, summary

MEASURES = {"linf", "l1", "l2", "cosine_similarity", "euclidean", "manhattan", "wasserstein"}


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 9), st.integers(0, 1000))
def test_each_measure_equals_its_oracle(count: int, channels: int, size: int, seed: int) -> None:
    original, changed = pair((count, channels, size, size), seed)
    x, y = original.flatten(1).double().numpy(), changed.flatten(1).double().numpy()
    got = {name: values.numpy() for name, values in per_image(original, changed).items()}

    assert set(got) == MEASURES
    for order, name in ((np.inf, "linf"), (1, "l1"), (2, "l2")):
        np.testing.assert_allclose(got[name], np.linalg.norm(x - y, ord=order, axis=1), rtol=1e-12)
    np.testing.assert_allclose(got["cosine_similarity"], 1 - paired_cosine_distances(x, y), atol=1e-12)
    np.testing.assert_allclose(got["euclidean"], paired_euclidean_distances(x, y), rtol=1e-6)
    np.testing.assert_allclose(got["manhattan"], paired_manhattan_distances(x, y), rtol=1e-12)
    transport = [stats.wasserstein_distance(u, v) for u, v in zip(x, y, strict=True)]
    np.testing.assert_allclose(got["wasserstein"], transport, atol=1e-12)


def test_the_summary_equals_numpy_and_scipy() -> None:
    original, changed = pair((23, 3, 6, 6))
    for values in per_image(original, changed).values():
        sample = values.numpy()
        expected = {
            "mean": sample.mean(),
            "median": np.median(sample),
            "stdev": sample.std(),
            "iqr": stats.iqr(sample),
            "min": sample.min(),
            "max": sample.max(),
        }
        assert summary(values) == pytest.approx(expected, rel=1e-9)


def test_equal_images_are_at_no_distance_even_black_ones() -> None:
    images = torch.stack([torch.zeros(1, 5, 5), torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))])
    for name, values in per_image(images, images).items():
        assert values.tolist() == pytest.approx([float(name == "cosine_similarity")] * 2)


def test_a_black_image_resembles_no_other() -> None:
    measures = per_image(torch.zeros(1, 1, 3, 3), torch.ones(1, 1, 3, 3))

    assert {name: values.item() for name, values in measures.items()} == pytest.approx(
        {
            "linf": 1,
            "l1": 9,
            "l2": 3,
            "cosine_similarity": 0,
            "euclidean": 3,
            "manhattan": 9,
            "wasserstein": 1,
        }
    )


def test_moving_pixels_about_costs_no_wasserstein_distance() -> None:
    image, _ = pair((1, 1, 4, 4))
    measures = per_image(image, image.flip(3))

    assert measures["wasserstein"].item() == 0
    assert measures["l2"].item() > 0


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    original, changed = pair((50, 3, 8, 8))
    whole = per_image(original, changed)
    monkeypatch.setattr(distances, "_CHUNK_VALUES", 7 * 3 * 64)

    for name, values in per_image(original, changed).items():
        assert torch.equal(values, whole[name])


def test_one_image_has_a_spread_of_zero() -> None:
    found = summary(per_image(*pair((1, 1, 4, 4)))["l2"])

    assert found["stdev"] == found["iqr"] == 0
    assert found["min"] == found["max"] == found["median"] == pytest.approx(found["mean"])


def test_no_images_have_no_distances_and_unlike_shapes_are_refused() -> None:
    empty = torch.empty(0, 1, 4, 4)
    assert {len(values) for values in per_image(empty, empty).values()} == {0}
    with pytest.raises(ValueError, match="can't be compared"):
        per_image(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 5))
