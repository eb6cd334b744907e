from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import vmap

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.layers import Dropout, _kept, glorot_uniform, kaiming_normal, require_side


def _stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(300, 200))


def test_glorot_has_kerass_limits_and_zero_biases() -> None:
    stack = glorot_uniform(_stack())
    for layer, limit in ((stack[0], math.sqrt(6 / (8 * 25 + 32 * 25))), (stack[4], math.sqrt(6 / (300 + 200)))):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert 0.99 * limit < layer.weight.abs().max() <= limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.03)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_kaiming_keeps_the_scale_of_the_signal() -> None:
    stack = kaiming_normal(_stack())
    assert isinstance(stack[0], nn.Conv2d)
    assert stack[0].weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 25)), rel=0.03)
    assert stack[0].bias is not None
    assert not stack[0].bias.any()


@pytest.mark.parametrize("shape", [(3, 9, 20), (3, 20, 9)])
def test_the_shorter_side_decides(shape: tuple[int, int, int]) -> None:
    facts = TaskFacts("toy", shape, ("a", "b"), (1, 1), (1, 1), (1, 1), "0", "made up")
    require_side("net", facts, 9)
    with pytest.raises(SettingError, match=rf"net takes images of at least 10x10 .* toy have {shape[1]}x{shape[2]}"):
        require_side("net", facts, 10)


@pytest.mark.parametrize("p", [0.25, 0.5, 0.3, 0.001, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_the_share(p: float, dtype: torch.dtype) -> None:
    images = torch.ones(40, 8, 50, 50, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = Dropout(p)(images)
    dropped = int((found == 0).sum())
    # A binomial count: the chance of a miss is one in a million.
    share = round(p * 65536) / 65536
    assert stats.binomtest(dropped, images.numel(), share).pvalue > 1e-6
    assert found.unique().tolist() == [0, float(torch.tensor(1 / (1 - share), dtype=dtype))]
    assert (found.dtype, found.stride()) == (dtype, images.stride())


@pytest.mark.parametrize("p", [0.25, 0.3])
def test_dropout_decides_each_value_by_itself(p: float) -> None:
    """Neighbours in memory, which share a random word, and the same place in the next image."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        dropped = Dropout(p)(torch.ones(100, 4000)) == 0
    for step in (1, 2, 3, 4, 7, 8, 4000):
        both = dropped.flatten()[:-step] & dropped.flatten()[step:]
        assert float(both.float().mean()) == pytest.approx(p * p, abs=0.004)


def test_dropouts_gradient_is_its_mask() -> None:
    images = torch.rand(6, 3, 4, 5).transpose(1, 3).requires_grad_()
    assert _kept(images, 1 << 14).stride() == images.stride()
    found = Dropout(0.25)(images)
    found.sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad != 0, found != 0)
    torch.testing.assert_close(images.grad * images, found)


@pytest.mark.parametrize(
    "images", [torch.rand(3, 4)[:, ::2], torch.rand(5).expand(4, 5), torch.rand(0, 3), torch.rand(())]
)
def test_dropout_of_any_layout(images: Tensor) -> None:
    found = Dropout(0.5)(images)
    assert found.shape == images.shape
    assert bool(((found == 0) | (found == 2 * images)).all())


@pytest.mark.parametrize("p", [0.0, 0.25, 1e-6, 1 - 1e-6, 1.0])
def test_where_nothing_is_drawn_dropout_is_torchs(p: float) -> None:
    images = torch.rand(4, 5)
    assert torch.equal(Dropout(p).eval()(images), images)
    if p != 0.25:
        torch.testing.assert_close(Dropout(p)(images), images * round(1 - p))


def test_dropout_under_vmap_draws_for_each_sample() -> None:
    layer = Dropout(0.5)
    found = vmap(layer, randomness="different")(torch.ones(4, 1000))
    assert len({tuple(row) for row in found.tolist()}) == 4


def test_the_same_seed_drops_the_same() -> None:
    found = []
    for seed in (3, 3, 4):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.append(Dropout(0.25)(torch.ones(1000)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
