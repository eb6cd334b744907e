"""Keras files made by hand, as Keras 2 writes them, without Keras."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Mapping[str, Array]]


def library() -> Any:
    return importlib.import_module("h5py")


def layer(kind: str, name: str, *inputs: str, **config: Any) -> dict[str, Any]:
    nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


def source(height: int, width: int, channels: int, name: str = "input") -> dict[str, Any]:
    return layer("InputLayer", name, batch_input_shape=[None, height, width, channels])


def functional(*layers: dict[str, Any], output: str = "") -> dict[str, Any]:
    config = {
        "name": "model",
        "layers": list(layers),
        "input_layers": [["input", 0, 0]],
        "output_layers": [[output or layers[-1]["name"], 0, 0]],
    }
    return {"class_name": "Functional", "config": config}


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "chain", "layers": list(layers)}}


def write(path: Path, config: object, weights: Weights, *, whole: bool = True) -> Path:
    """A whole-model file, or a weight-only one with whole=False."""
    with library().File(path, "w") as file:
        if whole:
            file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
        root = file.create_group("model_weights") if whole else file
        for name, arrays in weights.items():
            for part, array in arrays.items():
                root[f"{name}/{name}/{part}:0"] = array
    return path


def drawn(seed: int, **shapes: Sequence[int]) -> dict[str, Array]:
    """Arrays of these shapes, uniform in [-0.5, 0.5]; statistics from 0.5 on."""
    draw = np.random.default_rng(seed)
    return {
        name: (draw.random(tuple(shape)) - (-0.5 if name == "moving_variance" else 0.5)).astype(np.float32)
        for name, shape in shapes.items()
    }


def convolved(
    images: Array, kernel: Array, stride: int = 1, *, same: bool = False, dilation: int = 1, depthwise: bool = False
) -> Array:
    """TensorFlow's convolution of [N, H, W, C] by its own definition, in float64."""
    (high, wide), (count, height, width, _) = kernel.shape[:2], images.shape
    spans = [(high - 1) * dilation + 1, (wide - 1) * dilation + 1]
    before = [0, 0]
    if same:
        sides = [-(-height // stride), -(-width // stride)]
        missing = [
            max((side - 1) * stride + span - whole, 0)
            for side, span, whole in zip(sides, spans, (height, width), strict=True)
        ]
        before = [gap // 2 for gap in missing]
    else:
        sides = [(whole - span) // stride + 1 for span, whole in zip(spans, (height, width), strict=True)]
    outputs = kernel.shape[2] * kernel.shape[3] if depthwise else kernel.shape[3]
    made = np.zeros((count, *sides, outputs))
    for row in range(sides[0]):
        for column in range(sides[1]):
            for up in range(high):
                for left in range(wide):
                    y, x = row * stride + up * dilation - before[0], column * stride + left * dilation - before[1]
                    if 0 <= y < height and 0 <= x < width:
                        pixel = images[:, y, x].astype(np.float64)
                        if depthwise:
                            made[:, row, column] += (pixel[..., None] * kernel[up, left]).reshape(count, -1)
                        else:
                            made[:, row, column] += pixel @ kernel[up, left]
    return made.astype(np.float32)


def pooled(images: Array, size: int, stride: int, kind: str, *, same: bool) -> Array:
    """TensorFlow's pooling of [N, H, W, C], over the pixels that there are."""
    _, height, width, _ = images.shape
    wholes = (height, width)
    sides = [-(-whole // stride) if same else (whole - size) // stride + 1 for whole in wholes]
    missing = [max((side - 1) * stride + size - whole, 0) for side, whole in zip(sides, wholes, strict=True)]
    top, first = (gap // 2 for gap in missing)
    made = np.zeros((len(images), *sides, images.shape[3]), dtype=np.float32)
    for row in range(sides[0]):
        for column in range(sides[1]):
            y, x = row * stride - top, column * stride - first
            window = images[:, max(y, 0) : y + size, max(x, 0) : x + size]
            made[:, row, column] = window.max((1, 2)) if kind == "max" else window.mean((1, 2))
    return made


SMALL = functional(
    source(8, 6, 3),
    layer("Conv2D", "conv", "input", filters=5, kernel_size=[3, 3], activation="relu"),
    layer("Flatten", "flat", "conv"),
    layer("Dense", "dense", "flat", units=3),
)
SMALL_WEIGHTS = {"conv": drawn(1, kernel=(3, 3, 3, 5), bias=(5,)), "dense": drawn(2, kernel=(120, 3), bias=(3,))}
