"""The base of architectures that put a new head on a published, pretrained backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from gauntlet import weights
from gauntlet.architecture import Architecture
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.layers import glorot_uniform, require_side
from gauntlet.plugin import name_of
from gauntlet.weights import Published

__all__ = ["Backbone", "Transfer"]


class Backbone(nn.Sequential):
    """A convolutional backbone. A frozen one keeps its weights and its batch statistics while the head trains."""

    def __init__(self, layers: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__(OrderedDict(layers))
        self.frozen = False
        for layer in self.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # an in-place ReLU overwrites what a hook on the layer before it was given

    def freeze(self) -> None:
        """Hold the weights and the batch statistics fixed from now on."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode and not self.frozen)
        return self


class _Repeat(nn.Module):
    """One grey channel three times."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


def _to_rgb(channels: int) -> nn.Module:
    """What brings `channels` channels to the backbone's three; 1x1 convolution where there is no natural way."""
    if channels == 3:
        return nn.Identity()
    return _Repeat() if channels == 1 else nn.Conv2d(channels, 3, 1)


@dataclass(frozen=True)
class Transfer(Architecture):
    """A backbone, global average pooling, Dense 1024 with ReLU, Dense n.

    weights: `auto` takes the published ImageNet weights from torch's hub folder, or downloads them, or else starts
    from scratch; `none` starts from scratch; anything else is the path of a state_dict (.safetensors, or a file of
    torch.save) of the backbone or of the whole published network. frozen: hold loaded backbone weights fixed; a
    backbone that starts from scratch is always trained.

    published: the file that `auto` means. prefix: what the backbone's parameter names begin with in such a file;
    head: what the names of its unused classifier begin with. width: channels that leave the backbone.
    """

    feature_layer: ClassVar[str] = "relu"
    published: ClassVar[Published]
    prefix: ClassVar[str] = ""
    head: ClassVar[str]
    width: ClassVar[int]
    least_side: ClassVar[int] = 16

    weights: str = "auto"
    frozen: bool = True

    def backbone(self) -> Backbone:
        """The untrained backbone: three channels to `width`."""
        raise NotImplementedError

    def check(self, facts: TaskFacts) -> None:
        require_side(name_of(self), facts, self.least_side)
        if self.weights not in {"auto", "none"}:
            self._file()

    def origin(self) -> str:
        file = self._file()
        if file is None:
            reason = "as asked" if self.weights == "none" else "ImageNet weights neither on disk nor downloadable"
            return f"from scratch ({reason})"
        source = "ImageNet weights" if self.weights == "auto" else "weights"
        state = "frozen" if self.frozen else "trained along"
        return f"{source} {file.name} (sha256 {weights.sha256(file)[:12]}), backbone {state}"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        backbone = self.backbone()
        file = self._file()
        if file is not None:
            self._load(backbone, file)
            if self.frozen:
                backbone.freeze()
        return nn.Sequential(
            OrderedDict(
                rgb=_to_rgb(shape[0]),
                backbone=backbone,
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                **self.classifier(classes),
            )
        )

    def classifier(self, classes: int) -> dict[str, nn.Module]:
        """The layers after the pooled features, by name; `output` is the last."""
        return {
            "dense": glorot_uniform(nn.Linear(self.width, 1024)),
            "relu": nn.ReLU(),
            "output": glorot_uniform(nn.Linear(1024, classes)),
        }

    def _file(self) -> Path | None:
        if self.weights == "none":
            return None
        if self.weights == "auto":
            return weights.find(self.published)
        path = Path(self.weights)
        if not path.is_file():
            raise SettingError(
                f"{name_of(self)}: weights = {self.weights!r}: no such file; legal are auto, none, "
                "and the path of a .safetensors or torch.save file"
            )
        return path

    def _load(self, backbone: Backbone, file: Path) -> None:
        own = backbone.state_dict()
        if any(tensor.is_meta for tensor in own.values()):
            return  # a skeleton whose weights the caller fills in
        state = {
            name.removeprefix(self.prefix): tensor
            for name, tensor in weights.read(file).items()
            if not name.startswith(self.head)
        }
        unfit = sorted(
            {name for name in own if name.rpartition(".")[2] != "num_batches_tracked"} - state.keys()
            | state.keys() - own.keys()
            | {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
        )
        if unfit:
            raise SettingError(
                f"{name_of(self)}: weights = {self.weights!r}: {file} holds another network's weights: {unfit[0]} and "
                f"{len(unfit) - 1} more names or shapes differ from {name_of(self)}'s"
            )
        with torch.no_grad():
            backbone.load_state_dict(state, strict=False)
