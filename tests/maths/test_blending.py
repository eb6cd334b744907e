from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn

from gauntlet.maths import blending
from gauntlet.maths.blending import blend, blend_entropies, entropy
from gauntlet.network import Network

FP32 = torch.float32


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = nn.Linear(8 * 16, 5)
        last.weight.data *= 30
        return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), last).eval()


def pictures(count: int, seed: int) -> Tensor:
    return torch.rand(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 12)),
        elements=st.floats(-500, 500, width=32),
    )
)
def test_the_entropy_is_scipys_in_bits(logits: NDArray[np.float32]) -> None:
    expected = stats.entropy(special.softmax(logits.astype(np.float64), axis=1), base=2, axis=1)
    found = entropy(torch.from_numpy(logits))

    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_the_entropy_of_the_certain_and_of_the_clueless() -> None:
    found = entropy(torch.tensor([[3e4, -3e4, 0, 0], [7.0, 7, 7, 7]], dtype=torch.bfloat16))

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0]))


@settings(max_examples=30)
@given(st.floats(0.1, 2), st.floats(0.1, 2), st.integers(0, 50))
def test_a_blend_is_a_clipped_sum_and_leaves_its_parts_alone(own: float, other: float, seed: int) -> None:
    one, two = pictures(3, seed), pictures(3, seed + 1)
    mixed = blend(one, two, own, other)

    np.testing.assert_allclose(mixed.numpy(), np.clip(own * one.numpy() + other * two.numpy(), 0, 1), atol=1e-6)
    assert torch.equal(one, pictures(3, seed))


@pytest.mark.parametrize(("own", "other"), [(1.0, 1.0), (0.5, 0.5), (0.3, 0.9), (0.2, 0.5)])
def test_the_mean_entropies_are_those_of_a_loop_over_every_pair(network: nn.Module, own: float, other: float) -> None:
    images, pool = pictures(9, 0), pictures(31, 1)
    found = blend_entropies(network, images, pool, own=own, other=other, dtype=FP32)

    expected = []
    for image in images.numpy():
        total = 0.0
        for partner in pool.numpy():
            mixed = np.clip(own * image + other * partner, 0, 1)
            with torch.no_grad():
                logits = network(torch.from_numpy(mixed[None]).float())[0].double().numpy()
            total += float(stats.entropy(special.softmax(logits), base=2))
        expected.append(total / len(pool))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert np.ptp(expected) > 0.05


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 40), st.integers(0, 9))
def test_each_image_is_judged_by_itself(count: int, partners: int, at_once: int, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(72, 4)).eval()
    images, pool = pictures(count, seed), pictures(partners, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(blending._AT_ONCE, "cpu", at_once)
        together = blend_entropies(network, images, pool, own=1, other=1, dtype=FP32)
    apart = [blend_entropies(network, image[None], pool, own=1, other=1, dtype=FP32) for image in images]

    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=0)


def test_a_pass_is_as_small_as_promised(network: nn.Module) -> None:
    sizes = []
    network.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    blend_entropies(network, pictures(7, 0), pictures(50, 1), own=1, other=1, dtype=FP32)

    assert sizes == [150, 150, 50]


@pytest.mark.parametrize(("other", "calls"), [(0.5, 7 + 50 + 1), (0.6, 7 * 50)])
def test_what_is_affine_is_computed_once_an_image_where_nothing_is_clipped(
    network: nn.Sequential, other: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, seen = network[0], []
    assert isinstance(first, nn.Conv2d)

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return nn.Conv2d.forward(first, images)

    monkeypatch.setitem(vars(first), "forward", counting)
    blend_entropies(network, pictures(7, 0), pictures(50, 1), own=0.5, other=other, dtype=FP32)

    assert sum(seen) == calls


@pytest.mark.parametrize("where", ["network", "body", "body.0", "normalise"])
def test_who_listens_hears_every_blend(network: nn.Sequential, where: str) -> None:
    whole, heard = Network(network, [0.4, 0.5], [0.2, 0.3], "3", "0").eval(), []
    images, pool = pictures(7, 0), pictures(50, 1)
    expected = blend_entropies(whole, images, pool, own=0.5, other=0.5, dtype=FP32)
    layer = whole if where == "network" else whole.get_submodule(where)
    layer.register_forward_hook(lambda _module, inputs, _output: heard.append(len(inputs[0])))
    found = blend_entropies(whole, images, pool, own=0.5, other=0.5, dtype=FP32)

    assert sum(heard) == 7 * 50
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("at_once", [1, 3, 7, 40])
@pytest.mark.parametrize(("own", "other"), [(0.5, 0.5), (0.2, 0.5), (1.0, 1.0)])
def test_passes_of_any_size_tell_the_same(
    network: nn.Module, own: float, other: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, pool = pictures(9, 0), pictures(11, 1)
    expected = blend_entropies(network, images, pool, own=own, other=other, dtype=FP32)
    monkeypatch.setitem(blending._AT_ONCE, "cpu", at_once)
    found = blend_entropies(network, images, pool, own=own, other=other, dtype=FP32)

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_bf16_tells_nearly_the_same(network: nn.Module, share: float) -> None:
    images, pool = pictures(20, 0), pictures(30, 1)
    exact, rough = (
        blend_entropies(network, images, pool, own=share, other=share, dtype=dtype) for dtype in (FP32, torch.bfloat16)
    )

    torch.testing.assert_close(rough, exact, atol=0.02, rtol=0)
