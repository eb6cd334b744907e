"""A model that somebody saved as ONNX, from whatever framework."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from gauntlet.architecture import Architecture
from gauntlet.errors import DataError
from gauntlet.facts import TaskFacts
from gauntlet.files import content
from gauntlet.formats.onnx_files import read_onnx
from gauntlet.plugin import model

from ._graph import Body, GraphModel
from ._onnx_body import body_of
from ._onnx_graph import sides_of

__all__ = ["OnnxModel"]


@model
@dataclass(frozen=True)
class OnnxModel(GraphModel):
    """The network of an ONNX file, with its weights, through onnx2torch (`pip install backdoor-gauntlet[onnx]`).

    One file with all weights inside, float32, one input of images [N, C, H, W] or [N, H, W, C], one output, opset 9 to
    the newest: convolutions, dense layers (MatMul and Add as well), pooling, batch normalisation, activations, sums and
    products, Concat, Pad, means, Reshape and Transpose. Modules are called as the nodes are. A final softmax or sigmoid
    is dropped: networks here give logits. Constants that are no layer's weights are never trained. Differs from
    onnx2torch's own conversion: no code is generated from the file, reshaping keeps the batch free, `SAME` padding and
    newer opsets are read. input_range: what the model was trained on; images come in 0..1 here. feature_layer_name,
    last_conv_name: layers to take instead of what the last dense layer takes, and of the last convolution.
    """

    reads: ClassVar[tuple[str, ...]] = (".onnx",)

    def check(self, facts: TaskFacts) -> None:
        self.taps(self._body(facts.shape, facts.classes, facts.name))

    def origin(self) -> str:
        return (
            f"from the file {self.path.name} (sha256 {content(self.path)[:16]}), by onnx2torch "
            f"{metadata.version('onnx2torch')}"
        )

    def declared(self) -> tuple[tuple[int, int, int], int] | None:
        file = read_onnx(self.path)
        channels, height, width = sides_of(file)[0]
        if channels is None or height is None or width is None:
            return None
        return (channels, height, width), body_of(file, (channels, height, width)).classes

    def is_trained(self) -> bool:
        return True

    def portable(self, folder: Path) -> Architecture:
        copy = folder / "model.onnx"
        try:
            shutil.copyfile(self.path, copy)
        except OSError as error:
            raise DataError(f"{self.path} can't be copied to {copy}: {error.strerror}") from error
        return replace(self, path=copy)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return self._body(shape, classes, "the task").to(torch.get_default_device())

    def _body(self, shape: tuple[int, int, int], classes: int, task: str) -> Body:
        body = body_of(read_onnx(self.path), shape, self.scale)
        self._check_classes(body, classes, task)
        return body
