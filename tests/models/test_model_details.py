"""What single architectures promise: published sizes, and the same numbers as an independent implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, relu
from torch.utils.flop_counter import FlopCounterMode

from gauntlet.architecture import Architecture
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.network import Network
from models.alex_net import AlexNet
from models.le_net import LeNet
from models.preact_resnet18 import PreActResNet18
from models.resnet18 import ResNet18
from models.resnet18_imagenet import ResNet18ImageNet
from models.resnet50 import ResNet50
from models.shallow_net import ShallowNet
from models.simple_cnn import SimpleCnn
from models.vgg16 import Vgg16
from models.vgg19_bn import Vgg19Bn

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def _skeleton(architecture: Architecture, shape: tuple[int, int, int], classes: int = 10) -> nn.Module:
    with torch.device("meta"):
        return architecture.build(shape, classes).eval()


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _randomise_statistics(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)


@pytest.mark.parametrize(
    ("architecture", "shape", "classes", "total"),
    [
        (ShallowNet(), GREY, 10, 784 * 32 + 32 + 32 * 10 + 10),
        (LeNet(), GREY, 10, 1_199_882),
        (SimpleCnn(), GREY, 10, 215_418),
        (AlexNet(), (3, 227, 227), 1000, 30_627_624),
        (AlexNet(), GREY, 10, 26_548_362),
        (ResNet18(), COLOUR, 10, 11_173_962),
        (PreActResNet18(), COLOUR, 10, 11_171_146),
        (Vgg19Bn(), COLOUR, 10, 20_040_522),
        (ResNet18ImageNet("none"), COLOUR, 10, 11_176_512 + 512 * 10 + 10),
        (ResNet50("none"), COLOUR, 10, 23_508_032 + 2048 * 1024 + 1024 + 1024 * 10 + 10),
        (Vgg16("none"), COLOUR, 10, 14_714_688 + 512 * 1024 + 1024 + 1024 * 10 + 10),
    ],
    ids=repr,
)
def test_parameters_are_as_many_as_published(
    architecture: Architecture, shape: tuple[int, int, int], classes: int, total: int
) -> None:
    assert _parameters(_skeleton(architecture, shape, classes)) == total


def test_le_net_shows_dioptras_layer_six() -> None:
    body = LeNet().build(GREY, 10).eval()
    keras = [path for path, layer in body.named_children() if not isinstance(layer, nn.ReLU)]
    assert keras[6] == LeNet.feature_layer
    with torch.no_grad():
        features, _ = Network(body, [0.0], [1.0], LeNet.feature_layer, None).features_and_logits(torch.rand(4, *GREY))
    assert features.shape == (4, 128)
    assert features.min() == 0


def test_simple_cnn_is_cheap() -> None:
    with FlopCounterMode(display=False) as counter:
        SimpleCnn().build(GREY, 10)(torch.rand(1, *GREY))
    assert counter.get_total_flops() / 2 < 3.2e6


@pytest.mark.parametrize(
    ("side", "stride", "padding", "flat"),
    [(28, 1, 5, 384 * 4), (32, 1, 5, 384 * 9), (64, 2, 5, 384 * 9), (194, 4, 5, 384 * 25), (195, 4, 0, 384)],
)
def test_alex_net_adapts_to_the_side(side: int, stride: int, padding: int, flat: int) -> None:
    body = _skeleton(AlexNet(), (3, side, side))
    first, dense = body.get_submodule("conv1"), body.get_submodule("dense1")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(dense, nn.Linear)
    assert (first.stride, first.padding, dense.in_features) == ((stride,) * 2, (padding,) * 2, flat)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)], ids=str)
def test_alex_net_trains_on_small_images(shape: tuple[int, int, int]) -> None:
    body = AlexNet().build(shape, 10)
    logits = body(torch.rand(2, *shape))
    logits.sum().backward()
    assert logits.shape == (2, 10)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in body.parameters())


def test_alex_net_refuses_eight_pixels() -> None:
    facts = TaskFacts("toy", (1, 8, 8), ("a", "b"), (1, 1), (1, 1), (1, 1), "0", "made up")
    with pytest.raises(SettingError, match="alex_net takes images of at least 15x15 pixels, and those of toy have 8x8"):
        AlexNet().check(facts)


@given(height=st.integers(16, 260), width=st.integers(16, 260))
def test_the_flattened_sizes_that_are_computed_by_hand_are_right(height: int, width: int) -> None:
    for architecture in (AlexNet(), LeNet(), SimpleCnn()):
        body = _skeleton(architecture, (1, height, width))
        assert body(torch.empty(1, 1, height, width, device="meta")).shape == (1, 10)


@pytest.mark.parametrize("cls", [ResNet18, PreActResNet18])
def test_width_scales_every_stage(cls: type[ResNet18] | type[PreActResNet18]) -> None:
    narrow = _skeleton(cls(width=16), COLOUR)
    assert narrow(torch.empty(2, *COLOUR, device="meta")).shape == (2, 10)
    assert 14 < _parameters(_skeleton(cls(), COLOUR)) / _parameters(narrow) < 17


def test_resnet18_computes_what_torchvisions_does() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    ours = ResNet18().build(COLOUR, 10).eval()
    _randomise_statistics(ours)
    theirs = models.resnet18(num_classes=10).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    renamed = {
        path.replace("shortcut", "downsample").replace("output", "fc"): tensor
        for path, tensor in ours.state_dict().items()
    }
    theirs.load_state_dict(renamed)
    images = torch.rand(2, *COLOUR)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_preact_resnet18_computes_what_its_paper_says() -> None:
    torch.manual_seed(0)
    body = PreActResNet18(width=8).build(COLOUR, 10).eval()
    _randomise_statistics(body)
    state = body.state_dict()

    def active(maps: Tensor, path: str) -> Tensor:
        mean, variance, scale, shift = (
            state[f"{path}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return relu(batch_norm(maps, mean, variance, scale, shift))

    images = torch.rand(2, *COLOUR)
    maps = conv2d(images, state["conv1.weight"], padding=1)
    for stage, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2), ("layer4", 2)):
        for block, step in ((f"{stage}.0", stride), (f"{stage}.1", 1)):
            first = active(maps, f"{block}.bn1")
            hidden = conv2d(first, state[f"{block}.conv1.weight"], stride=step, padding=1)
            out = conv2d(active(hidden, f"{block}.bn2"), state[f"{block}.conv2.weight"], padding=1)
            if f"{block}.shortcut.weight" in state:
                maps = conv2d(first, state[f"{block}.shortcut.weight"], stride=step)
            maps = out + maps
    expected = maps.mean((2, 3)) @ state["output.weight"].T + state["output.bias"]
    with torch.no_grad():
        torch.testing.assert_close(body(images), expected, rtol=1e-4, atol=1e-4)
