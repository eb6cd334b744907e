"""Gradient shaping against an implementation of DP-SGD that others wrote."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from defenses.gradient_shaping import Shaped
from gauntlet.network import Network
from gauntlet.objective import Batch


def _network() -> Network:
    torch.manual_seed(3)
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5))
    return Network(nn.Sequential(*layers), [0.4], [0.5], "3", "0").train()


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.rand(12, 1, 8, 8, generator=generator), torch.randint(0, 5, (12,), generator=generator)
    return Batch(images, labels, torch.arange(12), generator)


def _gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("clip", [0.05, 0.9, 1e4])
def test_the_gradient_is_that_of_opacus(clip: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opacus = pytest.importorskip("opacus", reason="opacus, the oracle, is not installed")
        optimizers = pytest.importorskip("opacus.optimizers")
        network, batch = _network(), _batch()
        other = opacus.GradSampleModule(copy.deepcopy(network))
        plain = torch.optim.SGD(other.parameters(), lr=0.0)
        settings = {"noise_multiplier": 0.0, "max_grad_norm": clip, "expected_batch_size": len(batch.labels)}
        optimizer = optimizers.DPOptimizer(plain, **settings)
        torch.autograd.backward(cross_entropy(other(batch.images), batch.labels))
        optimizer.step()
    torch.autograd.backward(Shaped(clip, 0.0).loss(network, batch))
    due = {name.removeprefix("_module."): value for name, value in _gradients(other).items()}
    found = _gradients(network)
    assert found.keys() == due.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, due[name], rtol=1e-4, atol=1e-6)


def test_the_noise_is_absolute_and_lies_on_the_sum() -> None:
    network, batch = _network(), _batch()
    torch.autograd.backward(Shaped(0.05, 0.0).loss(network, batch))
    quiet = _gradients(network)
    network.zero_grad()
    torch.autograd.backward(Shaped(0.05, 0.6).loss(network, batch))
    drawn = torch.cat([(value - quiet[name]).flatten() for name, value in _gradients(network).items()])
    assert float(drawn.std()) == pytest.approx(0.6 / len(batch.labels), rel=0.15)
