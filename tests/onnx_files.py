"""ONNX files made by hand, without any framework's exporter."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

Array = npt.NDArray[Any]


def library() -> Any:
    return importlib.import_module("onnx")


def node(kind: str, inputs: str, output: str, name: str = "", **attributes: Any) -> Any:
    """inputs: their names, separated by blanks."""
    return library().helper.make_node(kind, inputs.split(" "), [output], name, **attributes)


def drawn(seed: int, **shapes: tuple[int, ...]) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {name: (generator.standard_normal(shape) / 9).astype(np.float32) for name, shape in shapes.items()}


def proto(
    nodes: Sequence[Any],
    arrays: Mapping[str, Array],
    shape: Sequence[int | str | None] = ("N", 3, 11, 9),
    opset: int = 17,
    output: str = "logits",
) -> Any:
    helper, kind = library().helper, library().TensorProto.FLOAT
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(output, kind, ("N", "classes"))],
        [library().numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def write(path: Path, made: Any) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def answers(path: Path, images: Array) -> Array:
    """What onnx's own reference implementation says."""
    reference = importlib.import_module("onnx.reference")
    found: Array = reference.ReferenceEvaluator(str(path)).run(None, {"images": images})[0]
    return found


def exported(layers: Iterable[tuple[str, nn.Module]], source: str = "images") -> tuple[list[Any], dict[str, Array]]:
    """The nodes of a chain of torch's modules, and their arrays; the last one gives `logits`."""
    nodes: list[Any] = []
    arrays: dict[str, Array] = {}
    layers = list(layers)
    for place, (name, module) in enumerate(layers):
        output = "logits" if place == len(layers) - 1 else f"{name}_out"
        taken = [source]
        for key, value in module.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                arrays[f"{name}.{key}"] = value.numpy()
                taken.append(f"{name}.{key}")
        nodes.append(node(_KINDS[type(module)], " ".join(taken), output, name, **_settings(module)))
        source = output
    return nodes, arrays


_KINDS = {
    nn.Conv2d: "Conv",
    nn.BatchNorm2d: "BatchNormalization",
    nn.ReLU: "Relu",
    nn.MaxPool2d: "MaxPool",
    nn.Flatten: "Flatten",
    nn.Linear: "Gemm",
}


def _settings(module: nn.Module) -> dict[str, Any]:
    match module:
        case nn.Conv2d():
            return {"pads": [int(side) for side in module.padding] * 2}
        case nn.BatchNorm2d():
            return {"epsilon": module.eps}
        case nn.MaxPool2d():
            return {"kernel_shape": [module.kernel_size] * 2, "strides": [module.stride] * 2}
        case nn.Linear():
            return {"transB": 1}
    return {}
