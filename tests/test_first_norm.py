"""The first convolution and its batch normalisation as one, against the two layers themselves."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gauntlet import first_norm
from gauntlet.first_norm import normalised_first
from gauntlet.images import ImageSet
from gauntlet.network import Network
from gauntlet.patches import PatchForm, PatchMoments
from gauntlet.recipe import Recipe
from gauntlet.training import fit


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it wouldn't pay."""
    monkeypatch.setattr(first_norm, "WORTH_VALUES", 0)
    monkeypatch.setattr(first_norm, "WORTH_FLOPS", 1 << 40)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return images.to(memory_format=torch.channels_last)


def network(shape: tuple[int, int, int] = (3, 10, 9), kernel: Any = 3, padding: Any = 1, **other: Any) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        conv = nn.Conv2d(shape[0], 5, kernel, padding=padding, bias=other.pop("bias", False), **other)
        norm = nn.BatchNorm2d(5)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        layers = OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(2), flatten=nn.Flatten())
        body = nn.Sequential(layers)
    return Network(body, (0.4,) * shape[0], (0.3,) * shape[0], "pool", "conv").place(torch.device("cpu")).train()


def layer(made: Network, place: int) -> nn.Module:
    return list(made.body.children())[place]


def of_a_step(made: Network, images: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The logits of a training step, its gradients, and the state after it."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        answers = made(images)
    weights = torch.linspace(-1, 1, answers.numel()).view(answers.shape)
    (answers * weights).sum().backward()
    gradients = {f"gradient of {name}": value.grad for name, value in made.named_parameters() if value.grad is not None}
    found = {"answers": answers.detach(), **gradients, **made.state_dict()}
    return {name: value.double() for name, value in found.items()}


@given(
    st.integers(1, 3),
    st.integers(5, 9),
    st.integers(5, 9),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
@settings(max_examples=60, deadline=None)
def test_moments_are_those_of_unfolded_patches(
    channels: int, height: int, width: int, kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    images = drawn(4, channels, height, width)
    mean, covariance = PatchMoments(PatchForm((channels, height, width), kernel, padding))(images)
    patches = functional.unfold(images.double(), kernel, padding=padding)
    # unfold's order is [C, kh, kw].
    values = patches.view(4, channels, kernel[0] * kernel[1], -1).permute(2, 1, 0, 3).flatten(2).flatten(0, 1)
    torch.testing.assert_close(mean.double(), values.mean(1), rtol=0, atol=1e-6)
    expected = torch.cov(values, correction=0).reshape(covariance.shape)
    torch.testing.assert_close(covariance.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kernel", "padding"),
    [((1, 12, 12), 5, 2), ((3, 10, 9), 3, 1), ((2, 8, 8), (1, 3), (0, 1)), ((1, 9, 7), 3, 0)],
)
def test_a_step_is_that_of_the_two_layers(shape: tuple[int, int, int], kernel: Any, padding: Any) -> None:
    images = drawn(16, *shape)
    made = network(shape, kernel, padding)
    exact = of_a_step(copy.deepcopy(made).double(), images.double())
    with normalised_first(made):
        found = of_a_step(made, images)
    assert found.keys() == exact.keys()
    for name, value in found.items():
        # On MNIST the two layers themselves are off by 2e-4 to 8e-3 of the gradient's norm.
        assert (value - exact[name]).norm() <= 1e-4 * (1 + exact[name].norm()), name
    assert "forward" not in vars(made.body)


def test_bf16_is_as_near_to_the_truth_as_the_two_layers() -> None:
    images = drawn(64, 1, 12, 12)
    plain = network((1, 12, 12), 5, 2)
    other = copy.deepcopy(plain)
    exact = of_a_step(copy.deepcopy(plain).double(), images.double())
    expected = of_a_step(plain, images, torch.bfloat16)
    with normalised_first(other):
        found = of_a_step(other, images, torch.bfloat16)
    for name, value in exact.items():
        distance, theirs = (found[name] - value).norm(), (expected[name] - value).norm()
        assert distance <= 1.5 * theirs + 1e-3 * value.norm(), name


@pytest.mark.parametrize(
    "settings",
    [
        {"bias": True},
        {"stride": 2},
        {"dilation": 2},
        {"padding_mode": "reflect"},
        {"padding": "same"},
    ],
    ids=str,
)
def test_other_convolutions_stay_as_they_are(settings: dict[str, Any]) -> None:
    made = network(**settings)
    expected = of_a_step(copy.deepcopy(made), drawn(4, 3, 10, 9))
    with normalised_first(made):
        assert "forward" not in vars(made.body)
        found = of_a_step(made, drawn(4, 3, 10, 9))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    "why",
    ["evaluating", "gradient of the images", "a hook", "a backward hook", "too few values", "too dear", "float64"],
)
def test_maps_are_normalised_themselves(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, images = network(), drawn(4, 3, 10, 9)
    if why == "evaluating":
        layer(made, 1).eval()
    if why == "gradient of the images":
        images.requires_grad_()
    if why == "a hook":
        layer(made, 0).register_forward_hook(lambda *_: None)
    if why == "a backward hook":
        layer(made, 1).register_full_backward_hook(lambda *_: None)
    if why == "float64":
        made, images = made.double(), images.double()
    if why == "too dear":
        # 12 padded rows, each with itself and the two below it, of 11 columns in three colours; five maps of 90 values.
        monkeypatch.setattr(first_norm, "WORTH_FLOPS", 2 * 12 * 3 * 33**2 / (5 * 90) - 1)
    if why == "too few values":
        monkeypatch.setattr(first_norm, "WORTH_VALUES", 4 * 5 * 10 * 9 + 1)
    other = copy.deepcopy(made)
    expected = of_a_step(other, images)
    with normalised_first(made):
        found = of_a_step(made, images)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    if why == "gradient of the images":
        assert images.grad is not None


def test_the_first_layers_alone_are_what_they_are() -> None:
    made, images = network(), drawn(4, 3, 10, 9)
    with normalised_first(made):
        found = layer(made, 1)(layer(made, 0)(images))
    assert torch.equal(found, layer(network(), 1)(layer(network(), 0)(images)))


def test_a_copy_made_within_a_training_goes_its_own_way() -> None:
    made = network()
    with normalised_first(made):
        other = copy.deepcopy(made)
        of_a_step(other, drawn(4, 3, 10, 9))
    start = network().state_dict()
    assert all(torch.equal(value, start[name]) for name, value in made.state_dict().items())
    assert other.state_dict()["body.norm.num_batches_tracked"] == 1
    assert all(parameter.grad is not None for parameter in other.parameters())


def test_constant_images_have_no_variance() -> None:
    made = network()
    with normalised_first(made):
        found = of_a_step(made, torch.full((4, 3, 10, 9), 0.7).to(memory_format=torch.channels_last))
    assert all(value.isfinite().all() for value in found.values())


def test_frozen_filters_get_no_gradient() -> None:
    made = network()
    layer(made, 0).requires_grad_(False)
    with normalised_first(made):
        found = of_a_step(made, drawn(4, 3, 10, 9))
    assert "gradient of body.conv.weight" not in found
    assert "gradient of body.norm.weight" in found


def test_a_training_takes_this_way_and_repeats_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    class Counted(PatchMoments):
        def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(images)
            return super().__call__(images)

    monkeypatch.setattr(first_norm, "moments_of", Counted)
    levels = torch.randint(0, 256, (64, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet.of(levels, torch.arange(64) % 4)
    start = network((1, 12, 12), 5, 2)
    trained = [copy.deepcopy(start) for _ in range(2)]
    for each in trained:
        fit(each, images, Recipe(epochs=2, batch_size=16), seed=0, purpose=("training",), device=torch.device("cpu"))
    assert len(seen) == 2 * 2 * 4
    one, two = (each.state_dict() for each in trained)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["body.conv.weight"], start.state_dict()["body.conv.weight"])
