from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gauntlet.maths.gradients import image_gradients


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def norm(size: int, **settings: bool) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(size, **settings)
    for value in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
        if value is not None:
            value.data = torch.rand(size, generator=seeded(size)) + 0.5
    return layer


def falling(size: int) -> nn.BatchNorm2d:
    layer = norm(size)
    layer.weight.data[::2] *= -1
    return layer


def network(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), *between, nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(36, 3)
    ).eval()


def passed(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    output: Tensor = network(leaf)
    weights = torch.rand(output.shape, generator=seeded(1))
    (gradient,) = torch.autograd.grad((output.float() * weights).sum(), leaf)
    return output.detach(), gradient


@pytest.mark.parametrize(
    "between",
    [
        [norm(8), nn.ReLU()],
        [norm(8, affine=False), nn.ReLU()],
        [norm(8, track_running_stats=False), nn.ReLU()],
        [falling(8), nn.ReLU()],
        [norm(8)],
        [nn.ReLU(), norm(8)],
        [nn.Tanh(), norm(8), nn.Tanh()],
        [],
    ],
    ids=["norm", "without weights", "by batch", "falling", "norm alone", "norm last", "norm stays", "no norm"],
)
@pytest.mark.parametrize("turned", [True, False])
def test_the_same_values_and_gradients(between: list[nn.Module], turned: bool) -> None:
    whole, images = network(*between), torch.rand(5, 1, 10, 11, generator=seeded())
    if turned:
        whole, images = whole.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    expected = passed(whole, images)
    with image_gradients(whole):
        found = passed(whole, images)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=1e-4)
    assert torch.equal(passed(whole, images)[1], expected[1])
    assert not any(module._forward_hooks or "forward" in vars(module) for module in whole.modules())


def test_a_normalisation_in_train_mode_keeps_the_gradient_of_its_statistics() -> None:
    whole, images = network(norm(8), nn.ReLU()).train(), torch.rand(5, 1, 10, 11, generator=seeded())
    expected = passed(whole, images)
    with image_gradients(whole):
        found = passed(whole, images)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=1e-4)


def test_works_under_autocast() -> None:
    whole, images = network(norm(8), nn.ReLU()), torch.rand(5, 1, 10, 11, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = passed(whole, images)
        with image_gradients(whole):
            found = passed(whole, images)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=0.05, rtol=0.05)
