"""Networks that come back from the store: the same bytes in the same layout, and nobody else's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gauntlet import keys
from gauntlet.assembly import assemble, wrap
from gauntlet.network import Network
from gauntlet.pipeline import Context
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.store import Store
from gauntlet.toolbox import NetworkCodec, state_of
from tests.sample_cases import CaseMaker

CPU = torch.device("cpu")
KEY = keys.key({"name": "le_net"})
MODELS = ("shallow_net", "simple_cnn", "preact_resnet18")


@pytest.fixture
def codec(request: pytest.FixtureRequest, context: Context, registry: Registry, make_case: CaseMaker) -> NetworkCodec:
    name: str = getattr(request, "param", "simple_cnn")
    return NetworkCodec(registry.build(Kind.MODEL, name, {}), context.data(make_case("none")), CPU)


def made(codec: NetworkCodec) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = wrap(codec.architecture, codec.data.facts, codec.data.mean, codec.data.std)
    return network.place(CPU).eval()


def images() -> torch.Tensor:
    return torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("codec", MODELS, indirect=True)
def test_a_loaded_network_is_the_saved_one(codec: NetworkCodec, tmp_path: Path) -> None:
    saved = made(codec)
    codec.save(saved, tmp_path)
    loaded = codec.load(tmp_path)
    before, after = saved.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].stride() == after[name].stride() for name in before)
    assert not any(module.training for module in loaded.modules())
    assert [name for name, _ in saved.named_parameters()] == [name for name, _ in loaded.named_parameters()]
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.inference_mode():
        assert torch.equal(saved(images()), loaded(images()))


def test_two_loaded_networks_share_nothing(codec: NetworkCodec, tmp_path: Path) -> None:
    codec.save(made(codec), tmp_path)
    one, two = codec.load(tmp_path), codec.load(tmp_path)
    assert not {id(module) for module in one.modules()} & {id(module) for module in two.modules()}
    one.body.register_forward_hook(lambda *_: torch.zeros(5, 10))
    for parameter in one.parameters():
        parameter.detach().zero_()
    one.train()
    assert same(two, made(codec))
    assert same(codec.load(tmp_path), made(codec))
    assert not two.training
    with torch.inference_mode():
        assert two(images()).any()


def test_a_restored_network_is_a_copy(codec: NetworkCodec) -> None:
    network = made(codec)
    copy = codec.restore(state_of(network))
    for parameter in copy.parameters():
        parameter.detach().zero_()
    assert same(network, made(codec))


def test_frozen_parameters_stay_frozen(codec: NetworkCodec) -> None:
    mould = made(codec).requires_grad_(requires_grad=False)
    assert not any(parameter.requires_grad for parameter in assemble(mould, state_of(made(codec))).parameters())


@pytest.mark.parametrize("harm", ["missing", "surplus", "shape"])
def test_weights_that_do_not_fit_are_made_anew(codec: NetworkCodec, tmp_path: Path, harm: str) -> None:
    warnings: list[str] = []
    store = Store(tmp_path, warnings.append)
    state = state_of(made(codec))
    name = next(iter(state))
    if harm == "missing":
        del state[name]
    elif harm == "surplus":
        state["body.other"] = torch.ones(1)
    else:
        state[name] = state[name][:0]
    store.obtain("victim", KEY, {}, codec.tensors, lambda: state)
    again = store.obtain("victim", KEY, {}, codec, lambda: made(codec))
    assert not again.cached
    assert "the weights are not those of" in warnings[0]
    assert same(store.obtain("victim", KEY, {}, codec, lambda: made(codec)).value, made(codec))


def same(one: Network, two: Network) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Odd(nn.Module):
    """Attributes that a copy must neither share nor mix up."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.shared = self.layer
        self.beside: list[Any] = [self.layer, {"scale": torch.ones(1)}]
        self.recurrent = nn.GRU(2, 2)
        self.tied = nn.Linear(2, 3)
        self.tied.weight = self.layer.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.recurrent(self.layer(images) @ self.tied.weight)[0]
        return output


def test_assembling_odd_modules() -> None:
    first = Network(Odd(), (0.5,), (0.5,), "layer", None)
    second = Network(Odd(), (0.1,), (0.2,), "layer", None)
    found = assemble(first, state_of(second))
    assert same(found, second)
    body, other = found.body, first.body
    assert isinstance(body, Odd)
    assert isinstance(other, Odd)
    assert body.shared is body.layer is body.beside[0]
    assert body.tied.weight is body.layer.weight
    assert body.beside is not other.beside
    assert body.beside[1]["scale"] is not other.beside[1]["scale"]
    assert not {id(module) for module in found.modules()} & {id(module) for module in first.modules()}
    sequence = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(body(sequence), second.body(sequence))
