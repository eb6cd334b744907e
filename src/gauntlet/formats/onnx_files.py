"""ONNX files of unknown origin, checked before anything is made of them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gauntlet.errors import DataError
from gauntlet.files import fault

__all__ = ["OnnxFile", "library", "read_onnx", "shown", "values"]

_LIMIT = 1 << 30
_MAX_NODES = 20_000
_MAX_VALUES = 1 << 29
_OLDEST = 9
_PLAIN = ("", "ai.onnx")
# TensorProto's types: where the values stand when they are not raw, and their numpy type.
_STORED = {
    1: ("float_data", np.float32),
    6: ("int32_data", np.int32),
    7: ("int64_data", np.int64),
    9: ("int32_data", np.bool_),
}


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A checked model. proto: onnx's ModelProto, with one graph of plain nodes whose weights are all inside. opset: of
    ONNX's own operators. input: name and declared sides, None for any. output: its name.
    """

    where: str
    proto: Any
    opset: int
    input: tuple[str, tuple[int | None, ...]]
    output: str

    def error(self, number: int, problem: str) -> DataError:
        """The error for a node of the graph."""
        node = self.proto.graph.node[number]
        return DataError(
            f"{self.where}: node {shown(node.name) or f'number {number}'} ({shown(node.op_type)}): {problem}"
        )


def read_onnx(path: Path) -> OnnxFile:
    """The model of a file, read as a description and arrays: no code of it or generated from it runs.

    DataError names the file, and the node or tensor, when it is no ONNX file, damaged, too large, keeps weights in
    other files, declares more values than it holds, holds NaN, infinite values or types other than float32 and whole
    numbers, has subgraphs, functions or operators of other domains, or not one input and one output.
    """
    onnx = library("onnx")
    proto = _parsed(onnx, path)
    where, graph = str(path), proto.graph
    if not graph.node or not proto.opset_import:
        raise DataError(f"{where} is no ONNX model: it holds no nodes")
    if len(graph.node) > _MAX_NODES:
        raise DataError(f"{where} has {len(graph.node):,} nodes; legal: at most {_MAX_NODES:,}")
    if len(proto.functions) or len(graph.sparse_initializer) or len(proto.training_info):
        raise DataError(f"{where} has functions, sparse weights or a training graph of its own; legal: plain nodes")
    opset = max((each.version for each in proto.opset_import if each.domain in _PLAIN), default=0)
    newest = int(onnx.defs.onnx_opset_version())
    if not _OLDEST <= opset <= newest:
        raise DataError(f"{where} is of ONNX opset {opset}; legal: {_OLDEST} to {newest}")
    for name, tensor in _tensors(where, graph):
        _check_tensor(where, name, tensor)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # the C++ library's own types, and what protobuf raises
        raise DataError(f"{where} is no legal ONNX model: {_first(error)}") from None
    return OnnxFile(where, proto, opset, *_ends(where, graph))


def library(name: str) -> Any:
    """A module of the optional packages; DataError says which extra has it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError("reading ONNX models needs onnx and onnx2torch: pip install backdoor-gauntlet[onnx]") from None


def shown(name: str | bytes, most: int = 60) -> str:
    """A name of the file on one line of a message; protobuf gives bytes where it is no text."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    return plain if len(plain) <= most else f"{plain[: most - 3]}..."


def _parsed(onnx: Any, path: Path) -> Any:
    if path.exists() and (why := fault(path)):
        raise DataError(f"{path}: {why}")
    try:
        size = path.stat().st_size
        if size > _LIMIT:
            raise DataError(f"{path} has {size:,} bytes; legal: at most {_LIMIT:,}")
        return onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    except DataError:
        raise
    except Exception:  # protobuf's implementations each have their own error
        raise DataError(f"{path} is no ONNX file, or a damaged one") from None


def _tensors(where: str, graph: Any) -> Iterator[tuple[str, Any]]:
    """All arrays of the file, by how an error calls them."""
    for tensor in graph.initializer:
        yield f"the tensor {shown(tensor.name)}", tensor
    for number, node in enumerate(graph.node):
        title = f"node {shown(node.name) or f'number {number}'} ({shown(node.op_type)})"
        if node.domain not in _PLAIN:
            raise DataError(f"{where}: {title}: an operator of {shown(node.domain)}; legal: ONNX's own")
        for attribute in node.attribute:
            if attribute.HasField("g") or len(attribute.graphs):
                raise DataError(f"{where}: {title}: it holds a graph of its own; legal: plain nodes")
            if attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors) or attribute.ref_attr_name:
                raise DataError(f"{where}: {title}: {shown(attribute.name)} is no plain value")
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                yield f"{title}: {shown(attribute.name)}", tensor


def _check_tensor(where: str, name: str, tensor: Any) -> None:
    if tensor.data_location or len(tensor.external_data):
        raise DataError(
            f"{where}: {name} keeps its values in another file; save the model as one, in torch.onnx.export with "
            "external_data=False"
        )
    if tensor.data_type not in _STORED:
        raise DataError(f"{where}: {name} has ONNX's type {tensor.data_type}; legal: float32 and whole numbers")
    field, kind = _STORED[tensor.data_type]
    sides = list(tensor.dims)
    count = math.prod(sides)
    if min(sides, default=0) < 0 or count > _MAX_VALUES:
        raise DataError(f"{where}: {name} is declared as {sides[:8]}; legal: at most {_MAX_VALUES:,} values")
    stored = {
        "raw_data": len(tensor.raw_data) / np.dtype(kind).itemsize,
        "float_data": len(tensor.float_data),
        "int32_data": len(tensor.int32_data),
        "int64_data": len(tensor.int64_data),
    }
    due = {each: count if each == ("raw_data" if tensor.raw_data else field) else 0 for each in stored}
    if stored != due or len(tensor.string_data) or len(tensor.double_data) or len(tensor.uint64_data):
        raise DataError(f"{where}: {name} is declared as {sides[:8]}, but the file holds other values of it")
    if kind is np.float32:
        found = values(tensor)
        # A lone infinity is a bound, as the filling of a pooling is.
        if np.isnan(found).any() or (count > 1 and not np.isfinite(found).all()):
            raise DataError(f"{where}: {name} holds NaN or infinite values")


def values(tensor: Any) -> npt.NDArray[Any]:
    """The array of a checked tensor."""
    made: npt.NDArray[Any] = library("onnx").numpy_helper.to_array(tensor)
    return made


def _ends(where: str, graph: Any) -> tuple[tuple[str, tuple[int | None, ...]], str]:
    """The images' name and sides, and the logits' name."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise DataError(
            f"{where}: the model has {len(inputs)} inputs and {len(graph.output)} outputs; legal: one of each"
        )
    form = inputs[0].type.tensor_type
    sides = tuple(side.dim_value if side.HasField("dim_value") else None for side in form.shape.dim)
    if form.elem_type != 1 or len(sides) != 4 or any(side is not None and not 1 <= side <= 1 << 14 for side in sides):
        listed = ", ".join("any" if side is None else str(side) for side in sides[:8])
        raise DataError(
            f"{where}: its input {shown(inputs[0].name)} is [{listed}] of ONNX's type {form.elem_type}; legal: float32 "
            f"images [N, C, H, W] or [N, H, W, C] of at most {1 << 14} pixels a side"
        )
    return (inputs[0].name, sides), graph.output[0].name


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shown(lines[0], 160)
