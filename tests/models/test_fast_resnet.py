"""The whitening layer against linear algebra, the network against its equations, and its life in the engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, gelu, max_pool2d
from torch.overrides import TorchFunctionMode

from gauntlet.images import ImageSet
from gauntlet.network import Network
from gauntlet.pipeline import Context, run
from gauntlet.plugin import Kind
from gauntlet.randomness import seeded
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.stats import ratio
from gauntlet.toolbox import NetworkCodec, state_of
from gauntlet.training import fit
from models.fast_resnet import FastResNet, Whitening
from tests.sample_cases import CaseMaker

CPU = torch.device("cpu")
GREY, COLOUR = (1, 28, 28), (3, 32, 32)
MUON = Recipe(epochs=1, batch_size=100, optimizer="muon", learning_rate=0.2, rest_rate=0.01, schedule="linear")
NARROW = {"narrow": 8, "middle": 8, "wide": 16}


@pytest.fixture
def codec(context: Context, registry: Registry, make_case: CaseMaker) -> NetworkCodec:
    return NetworkCodec(registry.build(Kind.MODEL, "fast_resnet", NARROW), context.data(make_case("none")), CPU)


def smooth(shape: tuple[int, ...], seed: int) -> Tensor:
    """Images whose neighbouring pixels are alike, as in real ones."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return noise.cumsum(2).cumsum(3) / 10 + noise


def whitened(images: Tensor) -> Whitening:
    layer = Whitening(images.shape[1], 2)
    layer(images)
    return layer


def made(seed: int = 0, **widths: int) -> Network:
    with seeded(seed, "network"):
        body = FastResNet(**(NARROW | widths)).build(GREY, 10)
    return Network(body, [0.2], [0.3], FastResNet.feature_layer, FastResNet.last_conv).place(CPU)


def filters_of(network: nn.Module) -> Tensor:
    return next(module for module in network.modules() if isinstance(module, Whitening)).filters.clone()


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 4), height=st.integers(4, 12), width=st.integers(4, 12), seed=st.integers(0, 99))
def test_the_filters_are_a_root_of_the_inverse_covariance(channels: int, height: int, width: int, seed: int) -> None:
    """F'F = (C + eps I)^-1 whatever basis of eigenvectors was taken; numpy's patches and inverse."""
    images = smooth((32, channels, height, width), seed)
    filters = whitened(images).filters
    half = len(filters) // 2
    assert torch.equal(filters[:half], -filters[half:])
    patches = sliding_window_view(images.double().numpy(), (2, 2), (2, 3)).transpose(0, 2, 3, 1, 4, 5)
    patches = patches.reshape(-1, channels * 4)
    covariance = patches.T @ patches / len(patches)
    expected = np.linalg.inv(covariance + 5e-4 * np.eye(channels * 4))
    matrix = filters[:half].flatten(1).double().numpy()
    np.testing.assert_allclose(matrix.T @ matrix, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_what_comes_out_is_uncorrelated_on_other_images_too() -> None:
    images = smooth((600, 3, 16, 16), 0)
    layer = whitened(images[:300]).eval()
    with torch.no_grad():
        out = layer(images[300:])[:, :12].permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(12), rtol=0, atol=0.25)


def test_constant_images_give_finite_filters() -> None:
    assert torch.isfinite(whitened(torch.zeros(4, 3, 9, 9)).filters).all()


def test_the_covariance_is_that_of_a_bounded_number_of_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    images = smooth((8, 1, 16, 16), 0)
    monkeypatch.setattr("models.fast_resnet._PATCHES", 3 * 256)
    assert torch.equal(whitened(images).filters, whitened(images[:3]).filters)
    assert not torch.equal(whitened(images).filters, whitened(images[:2]).filters)


# ---------------------------------------------------------------------------- the filters come once, and then they stay


def test_evaluation_leaves_a_fresh_network_as_it_is() -> None:
    network = made().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.inference_mode():
        network(torch.rand(4, *GREY))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def _copied(network: Network, _codec: NetworkCodec, _folder: Path) -> Network:
    return copy.deepcopy(network)


def _stored(network: Network, codec: NetworkCodec, folder: Path) -> Network:
    codec.save(network, folder)
    return codec.load(folder)


def _restored(network: Network, codec: NetworkCodec, _folder: Path) -> Network:
    return codec.restore(state_of(network))


def _into_fresh(network: Network, _codec: NetworkCodec, _folder: Path) -> Network:
    fresh = made(seed=5)
    fresh.load_state_dict(network.state_dict())
    return fresh


def _into_trained(network: Network, _codec: NetworkCodec, _folder: Path) -> Network:
    other = made(seed=5).train()
    other(smooth((8, *GREY), 9))
    other.load_state_dict(network.state_dict())
    return other


Way = Callable[[Network, NetworkCodec, Path], Network]


@pytest.mark.parametrize("way", [_copied, _stored, _restored, _into_fresh, _into_trained])
def test_a_trained_networks_filters_survive_fine_tuning_on_other_images(
    way: Way, codec: NetworkCodec, tmp_path: Path
) -> None:
    network = made().train()
    random = filters_of(network)
    network(smooth((8, *GREY), 0))
    expected = filters_of(network)
    assert not torch.equal(expected, random)
    again = way(network, codec, tmp_path).train()
    again(smooth((8, *GREY), 1))
    again(smooth((8, *GREY), 2))
    assert torch.equal(filters_of(again), expected)


@pytest.mark.parametrize("way", [_copied, _stored, _restored, _into_fresh, _into_trained])
def test_an_untrained_networks_filters_come_with_its_first_batch(way: Way, codec: NetworkCodec, tmp_path: Path) -> None:
    network = made()
    again = way(network, codec, tmp_path)
    assert torch.equal(filters_of(again), filters_of(network))
    images = smooth((8, *GREY), 1)
    again.train()(images)
    expected = whitened((images - 0.2) / 0.3).filters
    torch.testing.assert_close(filters_of(again), expected, rtol=1e-4, atol=1e-4)


def test_a_trained_network_comes_back_bit_for_bit(codec: NetworkCodec, tmp_path: Path) -> None:
    network = made().train()
    network(smooth((8, *GREY), 0))
    codec.save(network.eval(), tmp_path)
    loaded = codec.load(tmp_path)
    before, after = network.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.inference_mode():
        images = torch.rand(3, *GREY)
        assert torch.equal(loaded(images), network(images))


class _Waits(TorchFunctionMode):
    """Counts what makes the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (Tensor.__bool__, Tensor.item, Tensor.__float__, Tensor.__int__, Tensor.tolist)
        return func(*args, **(kwargs or {}))


def test_only_the_first_step_waits_for_the_device() -> None:
    network = made().train()
    counts = []
    for _ in range(3):
        with _Waits() as waits:
            network(torch.rand(4, *GREY)).sum().backward()
        counts.append(waits.count)
    assert counts == [1, 0, 0]


# ---------------------------------------------------------------------------------------------------------- the network


def test_it_has_as_many_parameters_as_its_docstring_says() -> None:
    with torch.device("meta"):
        body = FastResNet().build(COLOUR, 10)
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    others = 24 + 4 * (64 + 256 + 256) + 256 * 10 + 10
    assert sum(parameter.numel() for parameter in body.parameters()) == convolutions + others


def test_it_computes_what_its_papers_say() -> None:
    network = made().train()
    network(smooth((8, *GREY), 0))
    network.eval()
    state = network.body.state_dict()

    def normalised(maps: Tensor, path: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(maps, *(state[f"{path}.{name}"] for name in names))

    images = torch.rand(4, *GREY)
    maps = gelu(conv2d((images - 0.2) / 0.3, state["whitening.filters"], state["whitening.bias"]))
    for stage in ("stage1", "stage2", "stage3"):
        pooled = max_pool2d(conv2d(maps, state[f"{stage}.conv1.weight"], padding=1), 2)
        maps = gelu(normalised(pooled, f"{stage}.bn1"))
        maps = maps + gelu(normalised(conv2d(maps, state[f"{stage}.conv2.weight"], padding=1), f"{stage}.bn2"))
    expected = maps.amax((2, 3)) @ state["output.weight"].T + state["output.bias"]
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_it_trains_on_as_few_as_two_images(count: int) -> None:
    images = torch.randint(0, 256, (count, *GREY), dtype=torch.uint8)
    network = made()
    fit(network, ImageSet.of(images, torch.arange(count) % 10), MUON, seed=0, purpose=("t",), device=CPU)
    with torch.inference_mode():
        assert torch.isfinite(network(torch.rand(1, *GREY))).all()


def test_the_same_seed_gives_the_same_bytes() -> None:
    images = ImageSet.of(torch.randint(0, 256, (300, *GREY), dtype=torch.uint8), torch.arange(300) % 10)
    states = []
    for _ in range(2):
        network = made()
        fit(network, images, MUON, seed=0, purpose=("t",), device=CPU)
        states.append(state_of(network))
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_it_learns_digits_and_a_backdoor_in_one_run(context: Context, make_case: CaseMaker) -> None:
    recipe = Recipe(**{**vars(MUON), "epochs": 6, "batch_size": 50, "label_smoothing": 0.2})
    case = replace(make_case("badnets", recipe=recipe), architecture=FastResNet(**NARROW))
    score = run(case, context).scores[0]
    assert ratio(score.clean) > 0.95
    assert ratio(score.backdoors[0].asr) > 0.95
