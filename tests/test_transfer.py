from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gauntlet.architecture import Architecture
from gauntlet.errors import DataError, SettingError
from gauntlet.facts import TaskFacts
from gauntlet.transfer import Backbone, Transfer
from gauntlet.weights import OFFLINE, Published
from models.resnet18_imagenet import ResNet18ImageNet
from models.resnet50 import ResNet50
from models.vgg16 import Vgg16

SHAPE = (1, 20, 20)
FACTS = TaskFacts("toy", SHAPE, ("a", "b", "c"), (1,) * 3, (1,) * 3, (1,) * 3, "0", "made up")


@dataclass(frozen=True)
class Tiny(Transfer):
    """A backbone of one normalised convolution."""

    last_conv: ClassVar[str | None] = "backbone.conv"
    published: ClassVar[Published] = Published("https://example.invalid/tiny-00000000.pth")
    prefix: ClassVar[str] = "features."
    head: ClassVar[str] = "classifier."
    width: ClassVar[int] = 4

    def backbone(self) -> Backbone:
        return Backbone([("conv", nn.Conv2d(3, 4, 3)), ("bn", nn.BatchNorm2d(4)), ("relu", nn.ReLU(inplace=True))])


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(OFFLINE, "1")
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    tensors = {
        f"features.{name}": torch.rand_like(tensor.float()) for name, tensor in Tiny().backbone().state_dict().items()
    }
    del tensors["features.bn.num_batches_tracked"]
    return {**tensors, "classifier.weight": torch.rand(9, 4)}


@pytest.fixture
def file(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


def _backbone(architecture: Architecture) -> nn.Module:
    return architecture.build(SHAPE, 3).get_submodule("backbone")


def test_without_weights_the_backbone_starts_from_scratch_and_trains() -> None:
    for architecture, words in ((Tiny(), "neither on disk nor downloadable"), (Tiny("none"), "as asked")):
        architecture.check(FACTS)
        assert architecture.origin().startswith("from scratch")
        assert words in architecture.origin()
        body = architecture.build(SHAPE, 3).train()
        assert all(parameter.requires_grad for parameter in body.parameters())
        assert all(module.training for module in body.modules())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_is_loaded_and_frozen(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    (torch.save if suffix == ".pth" else save_file)(state, path)
    architecture = Tiny(str(path))
    architecture.check(FACTS)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert architecture.origin() == f"weights mine{suffix} (sha256 {digest}), backbone frozen"
    body = architecture.build(SHAPE, 3).train()
    backbone = body.get_submodule("backbone")
    loaded = backbone.state_dict()
    assert all(torch.equal(loaded[name.removeprefix("features.")], state[name]) for name in state if "fe" in name)
    trained = {name for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert trained == {"dense.weight", "dense.bias", "output.weight", "output.bias"}
    before = {name: tensor.clone() for name, tensor in loaded.items()}
    images = torch.rand(4, *SHAPE, requires_grad=True)
    body(images).sum().backward()
    assert images.grad is not None
    assert images.grad.any()
    assert body.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_an_unfrozen_backbone_trains_along(file: Path) -> None:
    architecture = Tiny(str(file), frozen=False)
    assert architecture.origin().endswith("backbone trained along")
    backbone = _backbone(architecture).train()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(module.training for module in backbone.modules())


def test_auto_takes_what_lies_in_torchs_hub_folder(
    hub: Path, file: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"tiny-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    file.rename(hub / name)
    monkeypatch.setattr(Tiny, "published", Published(f"https://example.invalid/{name}"))
    assert Tiny().origin().startswith(f"ImageNet weights {name} (sha256 ")
    assert torch.equal(_backbone(Tiny()).state_dict()["conv.weight"], state["features.conv.weight"])


def test_a_skeleton_reads_no_file_yet_is_frozen_alike(file: Path) -> None:
    with torch.device("meta"):
        skeleton = Tiny(str(file)).build(SHAPE, 3)
    real = Tiny(str(file)).build(SHAPE, 3)
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    assert [p.requires_grad for p in skeleton.parameters()] == [p.requires_grad for p in real.parameters()]
    skeleton.load_state_dict(real.state_dict(), assign=True)
    images = torch.rand(2, *SHAPE)
    assert torch.equal(skeleton.train()(images), real.train()(images))
    assert [p.requires_grad for p in skeleton.parameters()] == [p.requires_grad for p in real.parameters()]


def test_unusable_weights_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(
        SettingError, match=r"weights = 'absent\.pth': no such file; legal are auto, none, and the path"
    ):
        Tiny("absent.pth").check(FACTS)
    path = tmp_path / "other.pth"
    absent = {name: tensor for name, tensor in state.items() if name != "features.conv.bias"}
    misshapen = {**state, "features.conv.bias": torch.ones(5)}
    foreign = {**state, "features.conv.gain": torch.ones(4)}
    for wrong, name in ((absent, "conv.bias"), (misshapen, "conv.bias"), (foreign, "conv.gain")):
        torch.save(wrong, path)
        with pytest.raises(SettingError, match=f"another network's weights: {name}"):
            Tiny(str(path)).build(SHAPE, 3)
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"other\.pth can't be read"):
        Tiny(str(path)).build(SHAPE, 3)


def test_one_grey_channel_is_repeated() -> None:
    body = Tiny("none").build(SHAPE, 3).eval()
    images = torch.rand(2, *SHAPE)
    assert torch.equal(body.get_submodule("rgb")(images), torch.cat([images] * 3, 1))


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channel_counts_are_mixed_to_three(channels: int) -> None:
    mixed = Tiny("none").build((channels, 20, 20), 3).get_submodule("rgb")(torch.rand(2, channels, 20, 20))
    assert mixed.shape == (2, 3, 20, 20)


def test_torchvisions_own_files_fit(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = {"resnet18": models.resnet18(), "resnet50": models.resnet50(), "vgg16": models.vgg16()}
    for cls, name, first in (
        (ResNet18ImageNet, "resnet18", "conv1.weight"),
        (ResNet50, "resnet50", "conv1.weight"),
        (Vgg16, "vgg16", "features.0.weight"),
    ):
        state = {
            key: torch.full(tensor.shape, 0.01, dtype=tensor.dtype)
            for key, tensor in theirs[name].state_dict().items()
            if not key.startswith("classifier") or key.endswith("bias")
        }
        save_file(state, tmp_path / f"{name}.safetensors")
        architecture = cls(str(tmp_path / f"{name}.safetensors"))
        tensors = _backbone(architecture).state_dict()
        assert tensors[first.removeprefix("features.")].eq(state[first]).all()
        assert all(torch.equal(tensor, torch.full_like(tensor, 0.01)) for tensor in tensors.values())


def test_resnet18_fine_tunes_the_whole_network(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = models.resnet18(weights=None).eval()
    save_file(theirs.state_dict(), tmp_path / "r.safetensors")
    architecture = ResNet18ImageNet(str(tmp_path / "r.safetensors"))
    body = architecture.build((3, 64, 64), 3).eval()
    assert all(weights.requires_grad for weights in body.parameters())
    assert architecture.origin().endswith("backbone trained along")
    assert body.get_submodule("output").weight.shape == (3, 512)
    theirs.fc = body.get_submodule("output")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(body(images), theirs(images))


def test_resnet18_without_weights_says_so() -> None:
    assert ResNet18ImageNet().origin() == "from scratch (ImageNet weights neither on disk nor downloadable)"


@pytest.mark.parametrize(("cls", "name"), [(ResNet18ImageNet, "resnet18"), (ResNet50, "resnet50")])
def test_resnets_compute_what_torchvisions_do(cls: type[Transfer], name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = getattr(models, name)(weights=None).eval()
    ours = cls("none").backbone().eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    theirs.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).mean((2, 3)), theirs(images))


def test_vgg16_computes_what_torchvisions_does() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = models.vgg16(weights=None).features
    ours = Vgg16("none").backbone()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
