from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from gauntlet.inference import as_it_is, halved, inference, pooling_early
from gauntlet.network import Network
from gauntlet.precision import autocast

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(2, 9),
    st.integers(2, 9),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_equals_torchs_pooling(
    count: int, channels: int, height: int, width: int, dtype: torch.dtype, turned: bool
) -> None:
    images = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(height)).to(dtype)
    images[0, 0, 0, 0] = torch.inf
    if turned:
        images = images.to(memory_format=torch.channels_last)
    expected = max_pool2d(images, 2)
    assert torch.equal(halved(images), expected)
    assert halved(images).is_contiguous(memory_format=torch.channels_last) >= turned


def test_what_is_not_a_number_stays_none() -> None:
    images = torch.zeros(1, 1, 2, 2)
    images[0, 0, 1, 1] = torch.nan
    assert halved(images).isnan().all()


@pytest.mark.parametrize(
    ("pool", "taken"),
    [
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d((2, 2), (2, 2)), True),
        (nn.MaxPool2d(2, 1), False),
        (nn.MaxPool2d(3), False),
        (nn.MaxPool2d((2, 3)), False),
        (nn.MaxPool2d(2, padding=1), False),
        (nn.MaxPool2d(2, ceil_mode=True), False),
        (nn.MaxPool2d(2, dilation=2), False),
        (nn.AvgPool2d(2), False),
    ],
    ids=repr,
)
def test_other_pools_are_left_alone_and_all_are_afterwards(pool: nn.Module, taken: bool) -> None:
    network, images = nn.Sequential(nn.Conv2d(1, 4, 3), pool).eval(), torch.randn(2, 1, 12, 13)
    expected = network(images)
    with inference(network, CPU, torch.float32):
        assert ("forward" in vars(pool)) is taken
        assert torch.equal(network(images), expected)
    assert "forward" not in vars(pool)


def normalised(weight: float = 0.5, **settings: bool) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(4, **settings)
    for value in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
        if value is not None:
            value.data = torch.rand(4) + 0.1
    if layer.weight is not None:
        layer.weight.data[1] = weight
    return layer


def stack(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), *between, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 5 * 5, 3)]
    return nn.Sequential(OrderedDict((f"layer{place}", layer) for place, layer in enumerate(layers))).eval()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("between", "early"),
    [
        ([nn.ReLU()], 1),
        ([nn.ReLU(inplace=True)], 1),
        ([normalised(), nn.ReLU()], 2),
        ([normalised(affine=False), nn.ReLU()], 2),
        ([normalised(-0.5), nn.ReLU()], 1),
        ([normalised(0.0), nn.ReLU()], 1),
        ([normalised(track_running_stats=False), nn.ReLU()], 1),
        ([nn.ReLU(), normalised()], 2),
        ([nn.Sigmoid()], 0),
        ([nn.LeakyReLU()], 0),
        ([], 0),
    ],
    ids=[
        "relu",
        "relu in place",
        "norm and relu",
        "norm without weights",
        "a weight falls",
        "a weight is 0",
        "norm by batch",
        "norm after relu",
        "sigmoid",
        "leaky",
        "nothing",
    ],
)
def test_the_pool_goes_before_what_only_rises(between: list[nn.Module], early: int, dtype: torch.dtype) -> None:
    network = stack(*between)
    images = torch.randn(130, 1, 13, 13).to(memory_format=torch.channels_last)
    with torch.inference_mode(), autocast(CPU, dtype):
        expected = network(images)
    seen = []
    for layer in between:
        layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.shape[-1]))
    hooked = [dict(layer._forward_hooks) for layer in between]
    for layer in between:
        layer._forward_hooks.clear()
    with inference(network, CPU, dtype):
        for layer, hooks in zip(between, hooked, strict=True):
            layer._forward_hooks.update(hooks)
        assert sum("forward" in vars(layer) for layer in between) == early
        assert torch.equal(network(images), expected)
    assert len(seen) == len(between)
    assert not any("forward" in vars(layer) for layer in network)
    for layer in between:
        layer._forward_hooks.clear()


def test_what_somebody_reads_keeps_its_place() -> None:
    seen: list[Tensor] = []
    network = stack(nn.ReLU())
    network[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with inference(network, CPU, torch.float32):
        network(torch.randn(2, 1, 13, 13))
    assert seen[0].min() >= 0


def test_features_before_the_pool_are_those_of_the_whole_network() -> None:
    network = Network(stack(normalised(), nn.ReLU()), [0.5], [0.25], "layer2", "layer0").eval()
    images = torch.rand(3, 1, 13, 13)
    expected = network.features_and_logits(images)
    with inference(network, CPU, torch.float32):
        found = network.features_and_logits(images)
    assert all(map(torch.equal, found, expected))


def test_a_layer_that_stands_in_two_places_works_in_both() -> None:
    relu = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(1, 4, 3), relu, nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), relu).eval()
    images = torch.randn(2, 1, 13, 13)
    expected = network(images)
    with inference(network, CPU, torch.float32):
        assert torch.equal(network(images), expected)


def test_weights_are_themselves_again_whatever_happens() -> None:
    network = stack(nn.ReLU())
    before = dict(network.named_parameters())

    def fail() -> None:
        with inference(network, CPU, torch.bfloat16):
            assert network[0].weight.dtype == torch.bfloat16
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fail()
    after = dict(network.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def gradients(network: nn.Module, images: Tensor) -> list[Tensor]:
    images = images.clone().requires_grad_()
    found = torch.autograd.grad(network(images).square().sum(), [images, *network.parameters()])
    return list(found)


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_of_a_training_are_the_same_bit_for_bit(inplace: bool) -> None:
    network, images = stack(normalised(), nn.ReLU(inplace=inplace)).train(), torch.randn(9, 1, 13, 13)
    expected = gradients(network, images)
    with pooling_early(network, None, as_it_is):
        assert "forward" in vars(network[2])
        assert "forward" not in vars(network[1])
        assert all(map(torch.equal, gradients(network, images), expected))


def test_who_begins_to_listen_to_a_relu_hears_what_it_gives() -> None:
    seen: list[Tensor] = []
    network, images = stack(nn.ReLU()), torch.randn(2, 1, 13, 13)
    expected = gradients(network, images)
    with pooling_early(network, None, as_it_is):
        network[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        assert all(map(torch.equal, gradients(network, images), expected))
    assert torch.equal(seen[0], network[1](network[0](images)))


def test_a_copy_made_inside_stands_for_itself() -> None:
    network, images = stack(nn.ReLU()), torch.randn(2, 1, 13, 13)
    expected = network(images)
    with pooling_early(network, None, as_it_is):
        copied = copy.deepcopy(network)
        for parameter in network.parameters():
            parameter.data.zero_()
        assert torch.equal(copied(images), expected)


def test_what_is_moved_inside_is_as_before_afterwards() -> None:
    network, images = stack(nn.ReLU()), torch.randn(2, 1, 13, 13)
    expected = network(images)
    with pooling_early(network, None, as_it_is):
        moved = vars(network[2])["forward"]
        with inference(network, CPU, torch.float32):
            assert torch.equal(network(images), expected)
        assert vars(network[2])["forward"] is moved
        assert torch.equal(network(images), expected)
    assert not any("forward" in vars(layer) for layer in network)
