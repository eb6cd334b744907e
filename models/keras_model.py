"""A model that somebody saved with Keras, read without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from gauntlet.architecture import Architecture
from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.files import content
from gauntlet.formats.keras_weights import keras_arrays, load_keras
from gauntlet.layers import glorot_uniform
from gauntlet.plugin import model

from ._graph import Body, GraphModel
from ._keras_body import assembled
from ._keras_config import Graph, model_config, read_graph

__all__ = ["KerasModel"]


@model
@dataclass(frozen=True)
class KerasModel(GraphModel):
    """The model of a whole-model HDF5 file, with its weights, or of a `.json` file of its model_config, to be trained.

    Keras 2 and 3, sequential and functional: convolutions (also depthwise and separable), dense layers, pooling, batch
    normalisation, activations, Add, Concatenate, Flatten, dropout, padding. Modules are called as the layers are
    (`conv_3`), what is fused into a layer has its own (`conv_3_relu`). A final softmax or sigmoid is dropped: networks
    here give logits. input_range: what the model was trained on; images come in 0..1 here. feature_layer_name,
    last_conv_name: layers to take instead of what the last dense layer takes, and of the last convolution.
    """

    reads: ClassVar[tuple[str, ...]] = (".h5", ".hdf5")
    describes: ClassVar[tuple[str, ...]] = (".json",)

    def check(self, facts: TaskFacts) -> None:
        self.taps(self._skeleton(facts.shape, facts.classes, facts.name))

    def origin(self) -> str:
        kind = "from scratch, as described in" if self._is_description() else "from"
        return f"{kind} the file {self.path.name} (sha256 {content(self.path)[:16]})"

    def declared(self) -> tuple[tuple[int, int, int], int] | None:
        graph = read_graph(self.path)
        if graph.shape is None or None in graph.shape:
            return None
        height, width, channels = (int(side or 0) for side in graph.shape)
        body = assembled(graph, (channels, height, width), 1.0)
        return (channels, height, width), body.classes

    def is_trained(self) -> bool:
        return not self._is_description()

    def portable(self, folder: Path) -> Architecture:
        copy = folder / "model.json"
        copy.write_text(model_config(self.path), encoding="utf-8")
        return replace(self, path=copy)

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        body = self._skeleton(shape, classes, "the task")
        device = torch.get_default_device()
        if device.type != "meta":
            body = _initialised(body.to_empty(device=device))
            if not self._is_description():
                load_keras(body, keras_arrays(self.path), shape, str(self.path))
        return body

    def _skeleton(self, shape: tuple[int, int, int], classes: int, task: str) -> Body:
        graph = read_graph(self.path)
        self._check_shape(graph, shape, task)
        body = assembled(graph, shape, self.scale)
        self._check_classes(body, classes, task)
        return body

    def _is_description(self) -> bool:
        return self.path.suffix.lower() in self.describes

    def _check_shape(self, graph: Graph, shape: tuple[int, int, int], task: str) -> None:
        channels, height, width = shape
        declared = graph.shape
        if declared and any(
            side not in (None, given) for side, given in zip(declared, (height, width, channels), strict=True)
        ):
            sides = "x".join("any" if side is None else str(side) for side in declared)
            raise SettingError(
                f"{self.path} takes images of {sides} (HxWxC), and those of {task} have {height}x{width}x{channels}"
            )


def _initialised(body: Body) -> Body:
    """Weights as Keras draws them, and fresh statistics."""
    for module in body.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
    return glorot_uniform(body)
