"""ONNX files: read as hostile bytes, checked, and brought into the form that converts into plain layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gauntlet.errors import DataError, SettingError

__all__ = ["Graph", "read_onnx"]

_MAX_BYTES = 1 << 30
_MAX_NODES = 10_000
_MAX_VALUES = 1 << 27

_OPERATORS = frozenset(
    {
        *("Conv", "Gemm", "MatMul", "BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "LRN", "Pad"),
        *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"),
        *("Softplus", "Softsign", "Softmax", "LogSoftmax", "Clip", "Erf", "Gelu", "Dropout", "Identity", "Constant"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Neg", "Exp", "Sum", "Mean", "ReduceMean", "Concat", "Flatten"),
        *("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Shape", "Gather", "Slice", "Cast"),
    }
)
"""What an image classifier is made of. Left out: control flow, sequences, and what makes values of any size."""
_OPSET = 17
"""The version of the operators that the converter knows best; files of later ones are brought back to it."""
_SQUASHING = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})


@dataclass(frozen=True, eq=False)
class Graph:
    """proto: an `onnx.ModelProto` whose last operator gives logits. shape: (H, W, C), None for a side that may vary.

    channels_last: the model takes NHWC. classes: of the logits.
    """

    proto: Any
    shape: tuple[int | None, int | None, int]
    channels_last: bool
    classes: int


def read_onnx(path: Path) -> Graph:
    """The graph of an ONNX file. Raises DataError, SettingError where the extra is missing; neither runs anything."""
    onnx = _library(path)
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise DataError(f"{path} has more than {_MAX_BYTES >> 20} MiB")
        proto = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    except DataError:
        raise
    except Exception:  # the parser meets hostile bytes with whatever comes to its mind
        raise DataError(f"{path} is no ONNX model, or a damaged one") from None
    if not proto.graph.node or not proto.graph.output:
        raise DataError(f"{path} is no ONNX model, or an empty one")
    _check_operators(path, proto)
    _check_weights(path, proto)
    _free_batch(path, proto)
    try:
        onnx.checker.check_model(proto)
        proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # as above
        raise DataError(f"{path} is no valid ONNX model: {' '.join(str(error).split())[:200]}") from None
    _check_values(path, proto)
    shape, channels_last = _input(path, proto)
    proto = _older(proto)
    _plain(proto)
    return Graph(proto, shape, channels_last, _classes(path, proto))


def _library(path: Path) -> Any:
    try:
        import onnx
        import onnx.shape_inference
        import onnx2torch  # noqa: F401
    except ImportError:
        raise SettingError(f"{path}: ONNX models need an extra; pip install 'backdoor-gauntlet[onnx]'") from None
    return onnx


def _check_operators(path: Path, proto: Any) -> None:
    if len(proto.graph.node) > _MAX_NODES:
        raise DataError(f"{path} has {len(proto.graph.node):,} operators; legal: at most {_MAX_NODES:,}")
    if proto.functions:
        raise DataError(f"{path} defines functions of its own ({proto.functions[0].name}), which are not read")
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in _OPERATORS:
            kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise DataError(f"{path}: operator {node.name or node.output[0]!r}: {kind} is not supported")


def _tensors(proto: Any) -> Iterator[tuple[str, Any]]:
    yield from ((tensor.name, tensor) for tensor in proto.graph.initializer)
    for node in proto.graph.node:
        yield from ((node.name or node.output[0], value.t) for value in node.attribute if value.HasField("t"))


def _check_weights(path: Path, proto: Any) -> None:
    """Sizes as declared, before anything is made of them, and no value that isn't finite."""
    from onnx import TensorProto, numpy_helper

    legal = {TensorProto.FLOAT: 4, TensorProto.INT64: 8, TensorProto.INT32: 4, TensorProto.BOOL: 1}
    if proto.graph.sparse_initializer:
        raise DataError(f"{path} holds sparse weights, which are not read")
    for name, tensor in _tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise DataError(
                f"{path}: {name}: weights in another file are not read; save the model as one file "
                "(torch.onnx.export: external_data=False)"
            )
        if tensor.data_type not in legal:
            kind = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in range(1, 23) else "unknown"
            raise DataError(
                f"{path}: {name} is of type {kind}; legal: FLOAT for weights, INT64, INT32, BOOL for shapes"
            )
        count = math.prod(tensor.dims)
        kept = len(tensor.raw_data) / legal[tensor.data_type] if tensor.raw_data else None
        kept = kept if kept is not None else max(map(len, (tensor.float_data, tensor.int64_data, tensor.int32_data)))
        if any(side < 0 for side in tensor.dims) or count != kept:
            raise DataError(f"{path}: {name} declares {list(tensor.dims)} and holds {kept:g} values")
        if tensor.data_type == TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise DataError(f"{path}: {name} holds NaN or infinite weights")


def _free_batch(path: Path, proto: Any) -> None:
    """One input, whose first side is any number of images; what was inferred for one of them says nothing."""
    names = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in names]
    if len(inputs) != 1 or len(proto.graph.output) != 1:
        raise DataError(
            f"{path} has {len(inputs)} inputs and {len(proto.graph.output)} outputs; legal: one of each, "
            "images and logits"
        )
    for value in (inputs[0], proto.graph.output[0]):
        sides = value.type.tensor_type.shape.dim
        if sides:
            sides[0].Clear()
            sides[0].dim_param = "images"
    del proto.graph.value_info[:]


def _sides(value: Any) -> list[int | None] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim]


def _check_values(path: Path, proto: Any) -> None:
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        count = math.prod(side for side in _sides(value) or () if side is not None)
        if count > _MAX_VALUES or count < 1:
            raise DataError(f"{path}: {value.name} has {count:,} values an image; legal: 1 to {_MAX_VALUES:,}")


def _input(path: Path, proto: Any) -> tuple[tuple[int | None, int | None, int], bool]:
    from onnx import TensorProto

    names = {tensor.name for tensor in proto.graph.initializer}
    value = next(value for value in proto.graph.input if value.name not in names)
    sides = _sides(value) or []
    if value.type.tensor_type.elem_type != TensorProto.FLOAT or len(sides) != 4:
        raise DataError(f"{path} doesn't take float images [N, C, H, W] or [N, H, W, C]: its input has {sides}")
    if sides[1] in (1, 3):
        return (sides[2], sides[3], sides[1]), False
    if sides[3] in (1, 3):
        return (sides[1], sides[2], sides[3]), True
    raise DataError(f"{path} takes {sides}: neither [N, C, H, W] nor [N, H, W, C] with 1 or 3 channels")


def _classes(path: Path, proto: Any) -> int:
    sides = _sides(proto.graph.output[0])
    if sides is None or len(sides) != 2 or sides[1] is None or sides[1] < 2:
        raise DataError(f"{path} gives {sides}; legal: logits [N, classes], 2 classes or more")
    return sides[1]


def _older(proto: Any) -> Any:
    """The same with operators of _OPSET where they are later, if that is possible."""
    from onnx import shape_inference, version_converter

    if not any(item.domain in ("", "ai.onnx") and item.version > _OPSET for item in proto.opset_import):
        return proto
    try:
        return shape_inference.infer_shapes(version_converter.convert_version(proto, _OPSET), data_prop=True)
    except Exception:  # whatever an adapter meets; the converter knows most later operators too
        return proto


def _without_identities(graph: Any) -> None:
    """What is called by two names is read by the first."""
    first: dict[str, str] = {}
    last = graph.output[0].name
    for node in [node for node in graph.node if node.op_type == "Identity" and node.output[0] != last]:
        first[node.output[0]] = first.get(node.input[0], node.input[0])
        graph.node.remove(node)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = first.get(name, name)


def _plain(proto: Any) -> None:
    """Drop a last softmax, make products with constant matrices layers, and flattening free of the batch's size."""
    graph = proto.graph
    _without_identities(graph)
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    if last.op_type in _SQUASHING:
        graph.output[0].name = last.input[0]
        graph.node.remove(last)
    known = {value.name: _sides(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    for node in graph.node:
        source, made = known.get(node.input[0]) if node.input else None, known.get(node.output[0])
        if node.op_type in ("Reshape", "Squeeze") and source and made and len(source) > len(made) == 2:
            node.op_type = "Flatten"
            del node.input[1:]
            del node.attribute[:]
    _join_products(graph, known)
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        node.name = _free(node.name or f"{node.op_type.lower()}_{number}", taken)


def _join_products(graph: Any, known: dict[str, list[int | None] | None]) -> None:
    """MatMul with a constant matrix, and the Add of a constant vector behind it, as the layer that they are."""
    constant = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "MatMul"]:
        if len(constant.get(node.input[1], ())) != 2 or len(known.get(node.input[0]) or ()) != 2:
            continue
        node.op_type = "Gemm"
        readers = [other for other in graph.node if node.output[0] in other.input]
        if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] == graph.output[0].name:
            continue
        (bias,) = [name for name in readers[0].input if name != node.output[0]] or [""]
        if len(constant.get(bias, ())) == 1:
            node.input.append(bias)
            node.output[0] = readers[0].output[0]
            graph.node.remove(readers[0])


def _free(name: str, taken: set[str]) -> str:
    """A legal name of a module that nothing else has."""
    from torch.fx import GraphModule

    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    plain = f"_{plain}" if not plain or plain[0].isdigit() else plain
    while plain in taken or hasattr(GraphModule, plain) or plain in ("initializers", "features"):
        plain += "_"
    taken.add(plain)
    return plain
