"""The common checks of every architecture; a new file in models/ is covered without a line here."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import models
from gauntlet.architecture import Architecture
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.network import Network
from gauntlet.plugin import Kind, kind_of
from gauntlet.randomness import generator, seeded
from gauntlet.weights import OFFLINE

CLASSES = 7
GREY, COLOUR, LARGE = (1, 28, 28), (3, 32, 32), (3, 64, 64)


def _architectures() -> dict[str, type[Architecture]]:
    found = {}
    for module in pkgutil.iter_modules(models.__path__):
        if not module.name.startswith("_"):
            members = vars(importlib.import_module(f"models.{module.name}")).values()
            (cls,) = {
                member
                for member in members
                if isinstance(member, type)
                and kind_of(member) is Kind.MODEL
                and member.__module__ == f"models.{module.name}"
            }
            if issubclass(cls, Architecture) and not cls.reads:  # what a file describes has tests of its own
                found[module.name] = cls
    return found


ARCHITECTURES = _architectures()
SMALL = ["shallow_net", "le_net", "simple_cnn"]
every = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.fixture(autouse=True, scope="module")
def _hermetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(OFFLINE, "1")
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("hub")))
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)
    _built.cache_clear()


def _facts(shape: tuple[int, int, int], name: str = "toy") -> TaskFacts:
    counts = (10,) * CLASSES
    return TaskFacts(name, shape, tuple("abcdefg"), counts, counts, counts, "0" * 64, "made up")


@cache
def _built(name: str) -> nn.Module:
    """Shared by the tests, which leave it alone."""
    with seeded(1, name):
        return ARCHITECTURES[name]().build(GREY, CLASSES).eval()


def _network(name: str, body: nn.Module | None = None) -> Network:
    cls = ARCHITECTURES[name]
    return Network(body or _built(name), [0.2], [0.3], cls.feature_layer, cls.last_conv).eval()


def _skeleton(name: str, shape: tuple[int, int, int]) -> nn.Module:
    with torch.device("meta"):
        return ARCHITECTURES[name]().build(shape, CLASSES)


def _images(count: int, shape: tuple[int, int, int] = GREY) -> Tensor:
    return torch.rand(count, *shape, generator=generator(0, "images"))


def _least(name: str) -> int:
    """The least side that `check` accepts."""
    for side in range(1, 257):
        try:
            ARCHITECTURES[name]().check(_facts((3, side, side)))
        except SettingError:
            continue
        return side
    raise AssertionError(f"{name} refuses every size up to 256")


def test_the_models_of_the_project_are_all_there() -> None:
    expected = {"shallow_net", "le_net", "alex_net", "simple_cnn", "preact_resnet18", "resnet18"}
    assert expected | {"resnet50", "vgg16", "vgg19_bn"} <= ARCHITECTURES.keys()


@every
@pytest.mark.parametrize("shape", [GREY, COLOUR, LARGE, (2, 33, 47), (5, 40, 29)], ids=str)
def test_logits_have_a_column_for_each_class(name: str, shape: tuple[int, int, int]) -> None:
    ARCHITECTURES[name]().check(_facts(shape))
    body = _skeleton(name, shape)
    assert body(torch.empty(3, *shape, device="meta")).shape == (3, CLASSES)
    assert {tensor.device.type for tensor in body.state_dict().values()} == {"meta"}


@every
def test_the_least_size_works_and_a_smaller_one_is_refused(name: str) -> None:
    least = _least(name)
    for shape in ((1, least, least), (3, least + 1, least), (3, least, least + 3)):
        ARCHITECTURES[name]().check(_facts(shape))
        assert _skeleton(name, shape)(torch.empty(2, *shape, device="meta")).shape == (2, CLASSES)
    if least > 1:
        for shape in ((3, least - 1, 100), (3, 100, least - 1)):
            with pytest.raises(SettingError, match=f"{name} .*at least {least}x{least} .*toy.* {shape[1]}x{shape[2]}"):
                ARCHITECTURES[name]().check(_facts(shape))


@every
def test_features_are_one_row_an_image_of_constant_width(name: str) -> None:
    network = _network(name)
    widths = set()
    with torch.no_grad():
        for count in (1, 3):
            features, logits = network.features_and_logits(_images(count))
            assert len(features) == count
            assert features.ndim == 2
            assert torch.isfinite(features).all()
            torch.testing.assert_close(logits, network(_images(count)))
            widths.add(features.shape[1])
    assert len(widths) == 1
    assert network.body.get_submodule(network.feature_layer) is not network.body


@every
def test_features_feed_the_last_dense_layer(name: str) -> None:
    network = _network(name)
    dense = [module for module in network.body.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        features, logits = network.features_and_logits(_images(4))
        torch.testing.assert_close(dense(features), logits)


@every
def test_the_last_convolution_is_one_and_is_the_last(name: str) -> None:
    body = _built(name)
    convolutions = [layer for layer, module in body.named_modules() if isinstance(module, nn.Conv2d)]
    last = ARCHITECTURES[name].last_conv
    assert last == (convolutions[-1] if convolutions else None)


@every
def test_no_hook_sees_an_output_that_is_overwritten_later(name: str) -> None:
    last = ARCHITECTURES[name].last_conv
    body = copy.deepcopy(_built(name))
    seen: list[tuple[Tensor, Tensor]] = []
    layer = body.get_submodule(last or ARCHITECTURES[name].feature_layer)
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append((output, output.clone())))
    with torch.no_grad():
        body(_images(2))
    assert torch.equal(*seen[0])


@every
def test_finite_gradients_reach_every_parameter(name: str) -> None:
    body = copy.deepcopy(_built(name)).train()
    images = _images(8).requires_grad_()
    with seeded(2, "dropout"):
        nn.functional.cross_entropy(body(images), torch.arange(8) % CLASSES).backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    for path, parameter in body.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
        assert parameter.grad.abs().sum() > 0, path


@every
def test_a_few_steps_lower_the_loss(name: str) -> None:
    body, images, labels = copy.deepcopy(_built(name)).train(), _images(8), torch.arange(8) % CLASSES
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    optimizer = torch.optim.Adam(body.parameters(), 3e-4)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(body(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-3


@every
def test_evaluation_is_deterministic_and_each_image_stands_alone(name: str) -> None:
    network, images = _network(name), _images(5)
    with torch.no_grad():
        together = network(images)
        assert torch.equal(together, network(images))
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    assert together.std(0).max() > 0


@every
def test_memory_format_changes_nothing(name: str) -> None:
    images = _images(3)
    moved = copy.deepcopy(_built(name)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = _built(name)(images)
        got = moved(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@every
def test_weights_survive_a_file(name: str, tmp_path: Path) -> None:
    body = _built(name)
    save_file(body.state_dict(), tmp_path / "weights.safetensors")
    again = _skeleton(name, GREY).eval()
    state = {path: tensor.clone() for path, tensor in load_file(tmp_path / "weights.safetensors").items()}
    again.load_state_dict(state, assign=True)
    with torch.no_grad():
        assert torch.equal(again(_images(2)), body(_images(2)))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in body.parameters()]


@every
def test_the_seed_alone_decides_the_initial_weights(name: str) -> None:
    expected = _built(name).state_dict()
    for seed, equal in ((1, True), (2, False)):
        with seeded(seed, name):
            state = ARCHITECTURES[name]().build(GREY, CLASSES).state_dict()
        assert all(torch.equal(state[path], tensor) for path, tensor in expected.items()) is equal


@every
def test_the_origin_is_said(name: str) -> None:
    assert ARCHITECTURES[name]().origin().startswith("from scratch")


@pytest.mark.parametrize("name", SMALL)
def test_real_digits_are_learnt(name: str) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images[:64]).float().div(16)[:, None]
    images = nn.functional.interpolate(images, size=(28, 28), mode="bilinear")
    labels = torch.from_numpy(digits.target[:64]).long()
    with seeded(3, name):
        network = Network(ARCHITECTURES[name]().build(GREY, 10), [0.3], [0.4], "", None)
        optimizer = torch.optim.Adam(network.parameters(), 5e-3)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        assert (network.eval()(images).argmax(1) == labels).float().mean() > 0.95
