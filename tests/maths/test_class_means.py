"""Class means against plain loops."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gauntlet.maths.class_means import class_means


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(0, 2**31))
def test_they_are_those_of_a_loop(drawn: list[int], seed: int) -> None:
    features = torch.randn(len(drawn), 7, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor(drawn, dtype=torch.int64)
    means, there = class_means(features, labels, 6)
    assert means.dtype == torch.float64
    assert there.tolist() == [label in drawn for label in range(6)]
    for label in range(6):
        own = features[labels == label].double()
        expected = own.mean(0) if len(own) else torch.zeros(7, dtype=torch.float64)
        torch.testing.assert_close(means[label], expected)
