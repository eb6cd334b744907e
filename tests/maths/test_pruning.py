from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import gauntlet.maths.pruning
from gauntlet.assembly import wrap
from gauntlet.facts import TaskFacts
from gauntlet.images import ImageSet, to_float
from gauntlet.maths.cut import cut
from gauntlet.maths.pruning import activations, hold_pruned, last_convolution, prune, sweep
from gauntlet.network import Network
from gauntlet.plugin import Kind
from gauntlet.randomness import seeded
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.training import fit

CPU = torch.device("cpu")
FACTS = TaskFacts("digits", (1, 24, 24), tuple("0123456789"), (100,) * 10, (20,) * 10, (50,) * 10, "", "")
SMALL: dict[str, dict[str, Any]] = {
    "fast_resnet": {"narrow": 16, "middle": 32, "wide": 64},
    "preact_resnet18": {"width": 8},
    "resnet18": {"width": 8},
    "resnet50": {"weights": "none"},
    "vgg16": {"weights": "none"},
}
CONVOLUTIONAL = sorted(
    name for name, cls in Registry.discover().classes(Kind.MODEL).items() if cls.last_conv is not None
)

BRANCHING = ("deepid",)
"""What follows their linear layer reads what the last convolution doesn't reach: its rest runs for each level."""


@cache
def digits() -> ImageSet:
    """The real ones, each pixel three times as high and as wide."""
    data = load_digits()
    images = torch.tensor(data.images * 15, dtype=torch.uint8)[:, None]
    return ImageSet.of(images.repeat_interleave(3, 2).repeat_interleave(3, 3), torch.tensor(data.target))


def trained(network: Network, count: int = 320, epochs: float = 2) -> Network:
    """So that its answers differ from image to image and from level to level."""
    recipe = Recipe(epochs=epochs, batch_size=32, learning_rate=2e-3, precision="fp32")
    fit(network, digits().subset(torch.arange(count)), recipe, seed=0, purpose=("training",), device=CPU)
    return network


@cache
def victim(name: str) -> Network:
    """Shared by the tests, which leave it alone."""
    with seeded(1, name):
        network = wrap(Registry.discover().build(Kind.MODEL, name, SMALL.get(name, {})), FACTS, (0.3,), (0.4,))
    return trained(network, *((320, 2) if sum(p.numel() for p in network.parameters()) < 2e6 else (32, 1)))


def held_out(count: int) -> Tensor:
    return digits().images(torch.arange(1000, 1000 + count))


def full_passes(network: Network, images: Tensor, order: Tensor, levels: list[int]) -> Tensor:
    found = []
    for level in levels:
        pruned = deepcopy(network).eval()
        layer = last_convolution(pruned)
        with torch.inference_mode():
            layer.weight[order[:level]] = 0
            if layer.bias is not None:
                layer.bias[order[:level]] = 0
            found.append(pruned(to_float(images).contiguous(memory_format=torch.channels_last)).argmax(1))
    return torch.stack(found)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_architecture_answers_as_full_passes_do(name: str) -> None:
    network = victim(name)
    channels = last_convolution(network).out_channels
    images = held_out(200 if channels <= 64 else 16)
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(1))
    levels = [0, 1, channels // 3, channels // 2, channels - 1, channels]
    parts = cut(network.body, str(network.last_conv))
    state = {key: value.clone() for key, value in network.state_dict().items()}
    found = sweep(network, images, order, levels)

    assert torch.equal(found, full_passes(network, images, order, levels))
    assert parts is not None
    assert name in BRANCHING or parts.split is not None, "an architecture of the project has lost the cheap way"
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    if channels <= 64:
        assert len(torch.unique(found[0])) > 5
        assert not torch.equal(found[0], found[3])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_order_and_any_levels(data: st.DataObject) -> None:
    network = victim("simple_cnn")
    order = torch.tensor(data.draw(st.permutations(range(32)))[: data.draw(st.integers(1, 32))])
    levels = data.draw(st.lists(st.integers(0, len(order)), min_size=1, max_size=5))

    assert torch.equal(sweep(network, held_out(30), order, levels), full_passes(network, held_out(30), order, levels))


@pytest.mark.parametrize("summed", [1, 700, 2500])
def test_sums_over_any_blocks_and_batches(summed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, order, levels = victim("le_net"), torch.arange(63, -1, -1), [64, 0, 7, 8, 9, 7, 40]
    monkeypatch.setitem(gauntlet.maths.pruning._SUMMED, "cpu", summed)
    monkeypatch.setitem(gauntlet.maths.pruning._AT_ONCE, "cpu", 7)

    assert torch.equal(sweep(network, held_out(20), order, levels), full_passes(network, held_out(20), order, levels))


class Mixing(nn.Module):
    """One body of each kind: what stands between its convolution `last` and the logits."""

    def __init__(self, forward: Callable[[Mixing, Tensor], Tensor], shape: tuple[int, int] = (4, 4)) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 5, 4, 2)
        self.last = nn.Conv2d(12, 12, 3, 1, 1)
        self.norm = nn.BatchNorm2d(12)
        self.relu = nn.ReLU(inplace=True)
        self.squeeze = nn.Linear(12, 12)
        self.output = nn.Linear(12 * 6 * 6, 10)
        self.averaged = nn.Linear(12, 10)
        self.run = forward

    def forward(self, images: Tensor) -> Tensor:
        return self.run(self, functional.relu(self.first(images)))


def chain(self: Mixing, x: Tensor) -> Tensor:
    return self.output(self.relu(self.norm(self.last(x))).flatten(1))  # type: ignore[no-any-return]


def residual(self: Mixing, x: Tensor) -> Tensor:
    x = functional.gelu(self.norm(self.last(x)) + x) + x
    return self.averaged(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


def squeezed(self: Mixing, x: Tensor) -> Tensor:
    y = self.last(x)
    scale = torch.sigmoid(self.squeeze(functional.adaptive_avg_pool2d(y, 1).flatten(1)))
    return self.output((y * scale[:, :, None, None]).flatten(1))  # type: ignore[no-any-return]


def around(self: Mixing, x: Tensor) -> Tensor:
    """The maps reach the logits beside the linear layer too."""
    y = torch.relu(self.last(x))
    return self.output(y.flatten(1)) + y.mean((2, 3))[:, :10]  # type: ignore[no-any-return]


def skipping(self: Mixing, x: Tensor) -> Tensor:
    """What comes after the linear layer reads what comes before the convolution."""
    return self.output(self.last(x).flatten(1)) + x.mean((2, 3))[:, :10]  # type: ignore[no-any-return]


def reshaped(self: Mixing, x: Tensor) -> Tensor:
    y = self.last(x)
    return self.output(y.reshape(y.size(0), -1))  # type: ignore[no-any-return]


def turned(self: Mixing, x: Tensor) -> Tensor:
    """A flattening that doesn't keep a channel's values in a row."""
    return self.output(self.last(x).permute(0, 2, 3, 1).flatten(1))  # type: ignore[no-any-return]


def spoiling(self: Mixing, x: Tensor) -> Tensor:
    """Changes in place what was there before the convolution: a second level would change it again."""
    z = x + 1
    z.add_(self.last(x))
    return self.output(z.flatten(1))  # type: ignore[no-any-return]


def branching(self: Mixing, x: Tensor) -> Tensor:
    y = self.last(x)
    return self.output((y if y.mean() > 1e9 else -y).flatten(1))  # type: ignore[no-any-return]


def twice(self: Mixing, x: Tensor) -> Tensor:
    return self.output(self.last(functional.relu(self.last(x))).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "traced", "split"),
    [
        (chain, True, True),
        (residual, True, True),
        (squeezed, True, False),
        (around, True, False),
        (skipping, True, False),
        (reshaped, True, False),
        (turned, True, False),
        (spoiling, False, False),
        (branching, False, False),
        (twice, False, False),
    ],
)
def test_every_way_gives_the_same_answers(forward: Any, traced: bool, split: bool) -> None:
    with seeded(2, "mixing"):
        network = trained(Network(Mixing(forward), [0.3], [0.4], "output", "last"), epochs=6)
    order, levels = torch.randperm(12, generator=torch.Generator().manual_seed(0)), [0, 3, 6, 11, 12]
    parts = cut(network.body, "last")
    found = sweep(network, held_out(150), order, levels)

    assert (parts is not None, parts is not None and parts.split is not None) == (traced, split)
    assert torch.equal(found, full_passes(network, held_out(150), order, levels))
    assert len(torch.unique(found[0])) > 5
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("last_conv", ["conv1", "conv2"])
def test_what_does_not_depend_on_the_convolution_runs_once_a_batch(last_conv: str) -> None:
    network = deepcopy(victim("simple_cnn"))
    network.last_conv = last_conv
    runs: list[Tensor] = []
    network.body.get_submodule("conv1").register_forward_hook(lambda _module, _inputs, output: runs.append(output))
    levels = list(range(last_convolution(network).out_channels + 1))
    sweep(network, held_out(200), torch.arange(levels[-1]), levels)

    assert [len(run) for run in runs] == [128, 72]


@pytest.mark.parametrize(
    ("order", "levels"), [([0, 0], [1]), ([0, 32], [1]), ([-1, 3], [1]), ([0, 1], [3]), ([0, 1], [-1])]
)
def test_impossible_orders_and_levels_are_refused(order: list[int], levels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"order of channels|number of pruned channels"):
        sweep(victim("simple_cnn"), held_out(1), torch.tensor(order), levels)


def test_no_image_or_no_level_gives_no_answer() -> None:
    network = victim("simple_cnn")

    assert sweep(network, held_out(3), torch.arange(32), []).shape == (0, 3)
    assert sweep(network, held_out(0), torch.arange(32), [0, 1]).shape == (2, 0)
    assert sweep(network, held_out(3), torch.arange(0), [0]).shape == (1, 3)


def test_a_single_channel() -> None:
    with seeded(2, "single"):
        body = nn.Sequential(nn.Conv2d(1, 1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(121, 10))
    network = trained(Network(body, [0.3], [0.4], "2", "0"), epochs=6)
    for levels in ([0], [1], [1, 0]):
        found = sweep(network, held_out(50), torch.tensor([0]), levels)
        assert torch.equal(found, full_passes(network, held_out(50), torch.tensor([0]), levels))
    assert len(torch.unique(sweep(network, held_out(50), torch.tensor([0]), [0]))) > 3


def outputs(network: Network, layer: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = network.body.get_submodule(layer).register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        network.eval()(to_float(images))
    handle.remove()
    return seen[-1].double()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("le_net", "relu2"),
        ("simple_cnn", "relu2"),
        ("resnet18", "layer4.1"),
        ("preact_resnet18", "layer4.1.conv2"),
        ("vgg19_bn", "stage5.relu4"),
    ],
)
def test_activations_are_the_means_of_what_follows_the_convolution(name: str, layer: str) -> None:
    network = victim(name)
    found = activations(network, held_out(150))

    assert found.dtype == torch.float64
    assert found.max() > 0
    torch.testing.assert_close(found, outputs(network, layer, held_out(150)).abs().mean((0, 2, 3)), rtol=1e-5, atol=0)


def test_activations_of_an_untraceable_network_are_those_of_the_convolution() -> None:
    with seeded(2, "mixing"):
        network = Network(Mixing(branching), [0.3], [0.4], "output", "last")
    expected = outputs(network, "last", held_out(20)).abs().mean((0, 2, 3))

    torch.testing.assert_close(activations(network, held_out(20)), expected, rtol=1e-5, atol=0)


def test_a_network_without_a_convolution_is_refused() -> None:
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(576, 10)), [0.3], [0.4], "1", None)
    with pytest.raises(ValueError, match="last convolution"):
        last_convolution(network)


@dataclass(frozen=True)
class Training:
    optimizer: Any
    learning_rate: float
    weight_decay: float = 5e-4


@pytest.mark.parametrize("training", [Training("sgd", 0.05), Training("adam", 1e-2), Training("muon", 1e-2)], ids=repr)
@pytest.mark.parametrize("name", ["le_net", "simple_cnn"])
def test_pruned_channels_stay_zero_while_the_others_train(name: str, training: Training) -> None:
    network = deepcopy(victim(name))
    layer, gone = last_convolution(network), torch.tensor([3, 30, 8])
    prune(layer, gone)
    before = deepcopy(network.state_dict())
    recipe = Recipe(epochs=1, batch_size=32, precision="fp32", **vars(training))
    data = digits().subset(torch.arange(96))
    with hold_pruned(layer, gone):
        fit(network, data, recipe, seed=0, purpose=("tuning",), device=CPU)
    after = network.state_dict()
    changed = (layer.weight != before["body.conv2.weight"]).flatten(1).any(1)

    assert list(after) == list(before)
    assert changed.sum() == layer.out_channels - 3
    assert not changed[gone].any()
    assert all(not parameter[gone].any() for parameter in layer.parameters())


def test_a_frozen_convolution_is_pruned_and_stays_frozen() -> None:
    layer = nn.Conv2d(2, 4, 3)
    layer.weight.requires_grad_(False)
    kept = layer.weight[[0, 2]].clone()
    gone = torch.tensor([1, 3])
    prune(layer, gone)
    with hold_pruned(layer, gone):
        layer(torch.ones(1, 2, 5, 5)).sum().backward()

    assert torch.equal(layer.weight[[0, 2]], kept)
    assert not layer.weight[gone].any()
    assert not layer.weight.requires_grad
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert (layer.bias.grad != 0).tolist() == [True, False, True, False]
    layer(torch.ones(1, 2, 5, 5)).sum().backward()
    assert layer.bias.grad.all(), "the hold outlives its block"
