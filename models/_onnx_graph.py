"""An ONNX graph made ready for its conversion: constants in one place, every value's shape known, dead nodes gone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gauntlet.errors import DataError, SettingError
from gauntlet.formats.onnx_files import OnnxFile, library, shown, values

__all__ = ["BATCH", "RESHAPING", "Prepared", "prepare", "sides_of"]

BATCH = 97
"""Images of the batch that shapes are found for: a prime, so that it is recognised in them."""
RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Nodes that keep the values and their order."""

_MAX_VALUES = 1 << 27
_SAME = ("Identity", "Dropout")
_PADDED = ("Conv", "MaxPool", "AveragePool")

Shape = tuple[int, ...]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """file: as it was read. graph: a copy with only the nodes that the logits need; a node's name is its number in the
    file. shapes: of the values, for BATCH images. constants: the arrays that nodes take.
    """

    file: OnnxFile
    graph: Any
    shapes: Mapping[str, Shape]
    constants: Arrays
    channels_last: bool

    def error(self, node: Any, problem: str) -> DataError:
        """The error for a node of the copy."""
        return self.file.error(int(node.name), problem)


def sides_of(file: OnnxFile) -> tuple[tuple[int | None, int | None, int | None], bool]:
    """The declared (C, H, W), None for any, and whether the channels come last."""
    _, first, second, third = file.input[1]
    last = third in (1, 3) and first not in (1, 3)
    return ((third, first, second) if last else (first, second, third)), last


def prepare(file: OnnxFile, shape: tuple[int, int, int]) -> Prepared:
    """The graph for images of `shape` (C, H, W).

    SettingError where the file declares another one; DataError, naming the node, for a graph that is contradictory, has
    gigantic values, or makes one thing of a batch.
    """
    declared, last = sides_of(file)
    if any(side not in (None, given) for side, given in zip(declared, shape, strict=True)):
        sides = "x".join("any" if side is None else str(side) for side in declared)
        raise SettingError(f"{file.where} takes images of {sides} (CxHxW), and these are {'x'.join(map(str, shape))}")
    proto = type(file.proto)()
    proto.CopyFrom(file.proto)
    graph = proto.graph
    _collect(graph)
    constants = {tensor.name: values(tensor) for tensor in graph.initializer}
    _free_batch(graph, constants, file.input[1][0])
    channels, height, width = shape
    shapes = _shapes(file, proto, (BATCH, height, width, channels) if last else (BATCH, channels, height, width))
    ready = Prepared(file, graph, shapes, constants, last)
    _keep(graph, _live(graph))
    for node in graph.node:
        _check(ready, node)
    _join(graph, constants, shapes)
    _keep(graph, _live(graph))
    return ready


def _collect(graph: Any) -> None:
    """Constants become initializers, and nodes that change nothing go."""
    helper = library("onnx").numpy_helper
    weights = {tensor.name for tensor in graph.initializer}
    for each in [each for each in graph.input if each.name in weights]:
        graph.input.remove(each)
    same: dict[str, str] = {}
    kept: list[Any] = []
    for number, node in enumerate(graph.node):
        node.name = str(number)
        node.input[:] = [same.get(name, name) for name in node.input]
        found = _constant(node) if node.op_type == "Constant" else None
        if found is not None:
            graph.initializer.append(helper.from_array(found, node.output[0]))
        elif node.op_type in _SAME and not any(node.output[1:]):
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    graph.output[0].name = same.get(graph.output[0].name, graph.output[0].name)
    _keep(graph, kept)


def _constant(node: Any) -> npt.NDArray[Any] | None:
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                return values(attribute.t)
            case "value_float" | "value_floats":
                return np.array(attribute.f if attribute.name == "value_float" else attribute.floats, np.float32)
            case "value_int" | "value_ints":
                return np.array(attribute.i if attribute.name == "value_int" else attribute.ints, np.int64)
    return None


def _keep(graph: Any, nodes: Iterable[Any]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)


def _free_batch(graph: Any, constants: dict[str, npt.NDArray[Any]], batch: int | None) -> None:
    """A batch size that an exporter wrote into a Reshape becomes any."""
    changed: dict[str, npt.NDArray[Any]] = {}
    for node in graph.node:
        if node.op_type != "Reshape" or batch is None or len(node.input) != 2:
            continue
        wanted = constants.get(node.input[1])
        if wanted is not None and wanted.ndim == 1 and len(wanted) > 1 and wanted[0] == batch:
            name = f"{node.input[1]} free"
            # 0 stands for the input's own side where allowzero isn't set.
            for each in [each for each in node.attribute if each.name == "allowzero"]:
                node.attribute.remove(each)
            changed[name] = np.array([0, *wanted[1:]], np.int64)
            node.input[1] = name
    constants |= changed
    helper = library("onnx").numpy_helper
    graph.initializer.extend(helper.from_array(array, name) for name, array in changed.items())


def _shapes(file: OnnxFile, proto: Any, images: Shape) -> dict[str, Shape]:
    """Of every value that ONNX's own inference can tell."""
    onnx = library("onnx")
    graph = proto.graph
    graph.ClearField("value_info")
    graph.output[0].type.tensor_type.ClearField("shape")
    sides = graph.input[0].type.tensor_type.shape
    for side, given in zip(sides.dim, images, strict=True):
        side.Clear()
        side.dim_value = given
    try:
        found = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # the C++ library's own types
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise DataError(f"{file.where}: its shapes don't fit together: {shown(lines[-1], 160)}") from None
    graph.value_info.extend(found.value_info)
    known: dict[str, Shape] = {}
    for each in (*found.input, *found.value_info, *found.output):
        form = each.type.tensor_type
        if form.HasField("shape") and all(side.HasField("dim_value") for side in form.shape.dim):
            known[each.name] = tuple(side.dim_value for side in form.shape.dim)
    return known


def _live(graph: Any) -> list[Any]:
    """The nodes that the logits need. A reshaping node needs no shape: it is known."""
    needed, found = {graph.output[0].name}, []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        found.append(node)
        needed.update(node.input[:1] if node.op_type in RESHAPING else node.input)
    return found[::-1]


def _check(ready: Prepared, node: Any) -> None:
    shape = ready.shapes.get(node.output[0])
    if shape is None:
        raise ready.error(node, "the shape of its output can't be told")
    if not 1 <= math.prod(shape) <= BATCH * _MAX_VALUES or min(shape, default=1) < 1:
        sides = list(shape[1:])
        raise ready.error(node, f"it would give {sides} values an image; legal: 1 to {_MAX_VALUES:,}")
    source = ready.shapes.get(node.input[0]) if node.input else None
    if node.op_type in RESHAPING and source and source[0] == BATCH and shape[:1] != (BATCH,):
        raise ready.error(node, f"it makes {list(shape)} of a batch of {BATCH}; export the model for any batch size")
    if node.op_type == "Conv":
        weights = ready.constants.get(node.input[1])
        if weights is None:
            raise ready.error(node, "its weights are computed; legal: weights in the file")
        given = {attribute.name: attribute for attribute in node.attribute}
        if "kernel_shape" in given and tuple(given["kernel_shape"].ints) != weights.shape[2:]:
            raise ready.error(node, "its kernel_shape is not that of its weights")
    if node.op_type in _PADDED:
        _pad(ready, node, shape)


def _pad(ready: Prepared, node: Any, shape: Shape) -> None:
    """auto_pad, which the importer doesn't know, becomes plain numbers."""
    given = {attribute.name: attribute for attribute in node.attribute}
    mode = given["auto_pad"].s.decode("ascii", "replace") if "auto_pad" in given else "NOTSET"
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return
    source = ready.shapes.get(node.input[0], ())
    weights = ready.constants.get(node.input[1]) if node.op_type == "Conv" else None
    kernel = weights.shape[2:] if weights is not None else tuple(given["kernel_shape"].ints)
    ones = (1,) * len(kernel)
    steps = tuple(given["strides"].ints) if "strides" in given else ones
    gaps = tuple(given["dilations"].ints) if "dilations" in given else ones
    if not len(source) - 2 == len(kernel) == len(steps) == len(gaps):
        raise ready.error(node, "its kernel, strides and dilations don't fit its input")
    before: list[int] = []
    after: list[int] = []
    for side, out, width, step, gap in zip(source[2:], shape[2:], kernel, steps, gaps, strict=True):
        missing = max((out - 1) * step + (width - 1) * gap + 1 - side, 0)
        less, more = missing // 2, missing - missing // 2
        before.append(less if mode == "SAME_UPPER" else more)
        after.append(more if mode == "SAME_UPPER" else less)
    kept = [attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads")]
    made = [*kept, library("onnx").helper.make_attribute("pads", before + after)]
    copies = [type(attribute).FromString(attribute.SerializeToString()) for attribute in made]
    node.ClearField("attribute")
    node.attribute.extend(copies)


def _join(graph: Any, constants: Arrays, shapes: Mapping[str, Shape]) -> None:
    """A product with a matrix of the file, and the sum with a row behind it, become the dense layer that they are."""
    uses: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    for node in graph.node:
        matrix = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if matrix is None or matrix.ndim != 2 or len(shapes.get(node.input[0], ())) != 2:
            continue
        node.op_type = "Gemm"
        behind = uses.get(node.output[0], [])
        if len(behind) != 1 or behind[0].op_type != "Add" or node.output[0] == graph.output[0].name:
            continue
        other = [name for name in behind[0].input if name != node.output[0]]
        row = constants.get(other[0]) if len(other) == 1 else None
        if row is not None and row.shape == (matrix.shape[1],):
            node.input.append(other[0])
            node.output[0] = behind[0].output[0]
            # Without use from here on: its output has another maker, and comes before it.
            behind[0].output[0] = f"{behind[0].output[0]} joined"
