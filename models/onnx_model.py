"""A model that somebody saved as ONNX."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from gauntlet.architecture import Architecture
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.files import content
from gauntlet.plugin import model

from ._onnx_body import OnnxBody, assembled
from ._onnx_file import Graph, read_onnx

__all__ = ["OnnxModel"]


@model
@dataclass(frozen=True)
class OnnxModel(Architecture):
    """The model of an ONNX file with its weights; needs the extra `onnx`.

    Converted by onnx2torch into layers under the operators' names. One input, float images as NCHW or NHWC; one output,
    of which a final softmax or sigmoid is dropped: networks here give logits. The batch's size is free even where the
    file says 1. Weights in other files, control flow and operators that no image classifier has are refused.
    input_range: what the model was trained on; images come in 0..1 here.
    """

    reads: ClassVar[tuple[str, ...]] = (".onnx",)
    feature_layer: ClassVar[str] = "of the file"
    last_conv: ClassVar[str | None] = None

    path: Path
    input_range: Literal["0..1", "0..255"] = "0..1"

    def check(self, facts: TaskFacts) -> None:
        self._check(read_onnx(self.path), facts.shape, facts.classes, facts.name)

    def origin(self) -> str:
        return f"from the file {self.path.name} (sha256 {content(self.path)[:16]})"

    def declared(self) -> tuple[tuple[int, int, int], int] | None:
        graph = read_onnx(self.path)
        height, width, channels = graph.shape
        return None if height is None or width is None else ((channels, height, width), graph.classes)

    def portable(self, folder: Path) -> Architecture:
        copy = folder / "model.onnx"
        shutil.copyfile(self.path, copy)
        return replace(self, path=copy)

    def taps(self, body: nn.Module) -> tuple[str, str | None]:
        assert isinstance(body, OnnxBody)
        return body.feature_layer(), body.last_conv()

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        graph = read_onnx(self.path)
        self._check(graph, shape, classes, "the task")
        body = assembled(graph, 255.0 if self.input_range == "0..255" else 1.0, str(self.path))
        return body.to(torch.get_default_device())

    def _check(self, graph: Graph, shape: tuple[int, int, int], classes: int, task: str) -> None:
        channels, height, width = shape
        sides = zip(graph.shape, (height, width, channels), strict=True)
        if any(side not in (None, given) for side, given in sides):
            wanted = "x".join("any" if side is None else str(side) for side in graph.shape)
            raise SettingError(
                f"{self.path} takes images of {wanted} (HxWxC), and those of {task} have {height}x{width}x{channels}"
            )
        if graph.classes != classes:
            raise SettingError(f"{self.path} tells {graph.classes} classes apart, and {task} has {classes}")
