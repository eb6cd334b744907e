"""What models that come from a file with their graph have in common."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from gauntlet.architecture import Architecture
from gauntlet.errors import SettingError
from gauntlet.formats.keras_weights import Place

__all__ = ["Body", "GraphModel", "free_name"]


class Body(nn.Module):
    """Modules called as a file's layers are, and the steps in which they are applied.

    steps: (module, the modules whose outputs it takes); the first takes the images, the last gives the logits. places:
    where the weights of a module stand in a Keras file. outputs: layer name to the module with the layer's output.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        steps: tuple[tuple[str, tuple[str, ...]], ...],
        places: Mapping[str, Place],
        outputs: Mapping[str, str],
        classes: int,
    ) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.steps, self.places, self.outputs, self.classes = steps, dict(places), dict(outputs), classes

    def forward(self, images: Tensor) -> Tensor:
        made: dict[str, Tensor] = {}
        for name, sources in self.steps:
            taken = [made[source] for source in sources] if sources else [images]
            made[name] = self.get_submodule(name)(*taken)
        return made[self.steps[-1][0]]

    def feature_layer(self) -> str:
        """What the last dense layer takes, or the last convolution of a model without one."""
        wanted = nn.Linear if any(isinstance(module, nn.Linear) for module in self.modules()) else nn.Conv2d
        last = [step for step in self.steps if isinstance(self.get_submodule(step[0]), wanted)]
        return last[-1][1][0] if last else self.steps[0][0]

    def last_conv(self) -> str | None:
        """The last convolution."""
        names = [name for name, _ in self.steps if isinstance(self.get_submodule(name), nn.Conv2d)]
        return names[-1] if names else None


def free_name(taken: Collection[str], name: str) -> str:
    """`name` as an attribute of a Body that isn't `taken`."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    plain = f"_{plain}" if not plain or plain[0].isdigit() else plain
    reserved = {"steps", "places", "outputs", "classes", "feature_layer", "last_conv"}
    while plain in taken or plain in reserved or hasattr(nn.Module, plain):
        plain += "_"
    return plain


@dataclass(frozen=True)
class GraphModel(Architecture):
    """The settings of a model whose file describes it, and the layers that are read and pruned.

    input_range: what the model was trained on; images come in 0..1 here. feature_layer_name, last_conv_name: layers to
    take instead of what the last dense layer takes, and of the last convolution.
    """

    feature_layer: ClassVar[str] = "of the file"
    last_conv: ClassVar[str | None] = None

    path: Path
    input_range: Literal["0..1", "0..255"] = "0..1"
    feature_layer_name: str | None = None
    last_conv_name: str | None = None

    @property
    def scale(self) -> float:
        """What images in 0..1 are multiplied by."""
        return 255.0 if self.input_range == "0..255" else 1.0

    def taps(self, body: nn.Module) -> tuple[str, str | None]:
        assert isinstance(body, Body)
        feature, conv = body.feature_layer(), body.last_conv()
        if self.feature_layer_name is not None:
            feature = self._found(body, "feature_layer_name", self.feature_layer_name)
        if self.last_conv_name is not None:
            conv = self._found(body, "last_conv_name", self.last_conv_name)
            if not isinstance(body.get_submodule(conv), nn.Conv2d):
                raise SettingError(f"last_conv_name = {self.last_conv_name!r} is no convolution of {self.path}")
        return feature, conv

    def _found(self, body: Body, setting: str, name: str) -> str:
        if name in body.outputs:
            return name if setting == "last_conv_name" and name in dict(body.steps) else body.outputs[name]
        if name in dict(body.steps):
            return name
        raise SettingError(f"{setting} = {name!r}: {self.path} has no such layer; it has: {', '.join(body.outputs)}")

    def _check_classes(self, body: Body, classes: int, task: str) -> None:
        if body.classes != classes:
            raise SettingError(f"{self.path} tells {body.classes} classes apart, and {task} has {classes}")
