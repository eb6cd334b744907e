from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet.maths.per_sample import clipped_sum, fisher_diagonal, frozen_statistics


class _Scaled(nn.Module):
    """A parameter outside of any known layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.7, 1.3]))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.scale.view(1, 2, 1, 1)


def _network(kind: str) -> nn.Module:
    torch.manual_seed(4)
    front = [nn.Conv2d(2, 4, 3, stride=2, padding=1)]
    middle: dict[str, list[nn.Module]] = {
        "plain": [nn.ReLU(inplace=True)],
        "normalised": [nn.BatchNorm2d(4), nn.ReLU()],
        "odd": [nn.ReLU()],
    }
    first: list[nn.Module] = [_Scaled()] if kind == "odd" else []
    return nn.Sequential(*first, *front, *middle[kind], nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3))


def _one_by_one(network: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    found = []
    for image, label in zip(images, labels, strict=True):
        network.zero_grad()
        torch.autograd.backward(cross_entropy(network(image[None]), label[None]))
        found.append({name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None})
    return found


@pytest.mark.parametrize("kind", ["plain", "normalised", "odd"])
@pytest.mark.parametrize("clip", [0.05, 0.8, 1e6])
def test_the_clipped_sum_is_that_of_a_loop_over_samples(kind: str, clip: float) -> None:
    network = _network(kind)
    images, labels = torch.randn(7, 2, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    network(images)  # moves the running statistics away from their start
    with frozen_statistics(network):
        singles = _one_by_one(network, images, labels)
        total, losses = clipped_sum(network, images, labels, clip)
        expected_losses = cross_entropy(network(images), labels, reduction="none")
    for name in singles[0]:
        due = torch.zeros_like(singles[0][name])
        for single in singles:
            norm = torch.sqrt(sum((value.square().sum() for value in single.values()), torch.zeros(())))
            due += single[name] * min(1.0, clip / float(norm))
        torch.testing.assert_close(total[name], due, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses, expected_losses.detach())
    assert all(module.training for module in network.modules())


def test_the_fisher_diagonal_is_the_mean_of_squares() -> None:
    network = _network("plain")
    images, labels = torch.randn(5, 2, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    found = fisher_diagonal(network, images, labels)
    for name, value in found.items():
        due = torch.stack([single[name].square() for single in _one_by_one(network, images, labels)]).mean(0)
        torch.testing.assert_close(value, due, rtol=1e-4, atol=1e-7)
