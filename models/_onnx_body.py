"""The torch module that an ONNX graph makes, node by node through onnx2torch's converters.

onnx2torch's own `convert` is not used: it generates Python code from the names in the file and runs it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gauntlet.errors import DataError
from gauntlet.formats.onnx_files import OnnxFile, library, shown

from ._graph import Body, free_name
from ._keras_layers import Affine
from ._onnx_graph import BATCH, RESHAPING, Prepared, Shape, prepare

__all__ = ["body_of"]

_KNOWN = frozenset(
    {
        *("Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "Div", "Elu", "Erf", "Exp"),
        *("Flatten", "Gelu", "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish", "InstanceNormalization", "LRN"),
        *("LeakyRelu", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mul", "Neg", "PRelu", "Pad"),
        *("Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Selu", "Sigmoid", "Softmax"),
        *("Softplus", "Softsign", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Transpose", "Unsqueeze"),
    }
)
_SQUASHING = ("Softmax", "Sigmoid")
# The last version that says it by attributes, which need no values while the network runs.
_BY_ATTRIBUTES = {"Pad": (2, "pads"), "ReduceMean": (13, "axes"), "ReduceMax": (13, "axes"), "ReduceSum": (11, "axes")}
_MAX_PARAMETERS = 1 << 29


class Constant(nn.Module):
    """An array of the file, whatever it is given. It is no parameter: nothing trains it."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, _images: Tensor) -> Tensor:
        return self.value


class Reshape(nn.Module):
    """Every image's values in another form."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, maps: Tensor) -> Tensor:
        return maps.reshape(-1, *self.shape)


class ChannelsLast(nn.Module):
    """[N, C, H, W] as [N, H, W, C], which the model takes."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1)


@dataclass(eq=False)
class _Builder:
    """made: value of the graph to the module that gives it. trial: what the modules give, without memory."""

    ready: Prepared
    modules: dict[str, nn.Module] = field(default_factory=dict)
    steps: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    trial: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, module: nn.Module, sources: tuple[str, ...], given: list[Tensor]) -> str:
        name = free_name(self.modules, name)
        self.trial[name] = copy.deepcopy(module).to("meta").eval()(*given)
        self.modules[name] = module
        self.steps.append((name, sources))
        return name

    def begin(self, shape: tuple[int, int, int], scale: float) -> None:
        images = torch.empty(2, *shape, device="meta")
        name = self.add("input", nn.Identity() if scale == 1 else Affine(scale, 0), (), [images])
        if self.ready.channels_last:
            name = self.add("input_channels_last", ChannelsLast(), (name,), [self.trial[name]])
        self.made[self.ready.file.input[0]] = name

    def source(self, node: Any, name: str) -> str:
        """The module that gives a value, made now where it is an array of the file."""
        if name not in self.made:
            array = self.ready.constants.get(name)
            if array is None or array.dtype != np.float32:
                raise self.ready.error(node, f"its input {shown(name) or 'that is left out'} is no float32 value")
            value = Constant(torch.from_numpy(array.copy()))
            self.made[name] = self.add(name, value, (), [next(iter(self.trial.values()))])
        return self.made[name]

    def apply(self, node: Any, graph: Any) -> None:
        title = shown(self.ready.file.proto.graph.node[int(node.name)].name, 200).strip("/") or node.op_type
        try:
            parts, inputs = _converted(self.ready, node, graph)
            sources = tuple(self.source(node, name) for name in inputs)
            for suffix, module in parts:
                given = [self.trial[source] for source in sources]
                sources = (self.add(f"{title}{suffix}", module, sources, given),)
        except DataError:
            raise
        except Exception as error:  # converters and torch meet contradictions with whatever comes to their mind
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise self.ready.error(node, shown(lines[0], 160)) from None
        due = tuple(2 if side == BATCH else side for side in self.ready.shapes[node.output[0]])
        if tuple(self.trial[sources[0]].shape) != due and due[:1] == (2,):
            found = list(self.trial[sources[0]].shape)[1:]
            raise self.ready.error(node, f"imported, it gives {found} an image, and in ONNX {list(due)[1:]}")
        self.made[node.output[0]] = self.outputs[title] = sources[0]


def body_of(file: OnnxFile, shape: tuple[int, int, int], scale: float = 1) -> Body:
    """The model for images of `shape` (C, H, W), in eval mode on the CPU, with its weights.

    scale: what the images are multiplied by first. A softmax or sigmoid at the end is dropped, so that it gives logits.
    DataError names the node that won't do.
    """
    ready = prepare(file, shape)
    nodes = list(ready.graph.node)
    if nodes and nodes[-1].op_type in _SQUASHING and nodes[-1].output[0] == ready.graph.output[0].name:
        nodes.pop()
    if not nodes:
        raise DataError(f"{file.where}: the logits don't depend on the images")
    graph = library("onnx2torch.onnx_graph").OnnxGraph(ready.graph)
    builder = _Builder(ready)
    with torch.device("cpu"):
        builder.begin(shape, scale)
        for node in nodes:
            builder.apply(node, graph)
    last = builder.steps[-1][0]
    sides = list(builder.trial[last].shape)
    if len(sides) != 2 or sides[0] != 2:
        raise ready.error(nodes[-1], f"the model gives {sides[1:]} an image; legal: one value for each class")
    _check_parameters(file, builder.modules)
    body = Body(builder.modules, tuple(builder.steps), {}, builder.outputs, sides[1]).eval()
    _check_batch(file, body, shape)
    return body


def _check_parameters(file: OnnxFile, modules: dict[str, nn.Module]) -> None:
    total = sum(item.numel() for module in modules.values() for item in module.parameters())
    if not 1 <= total <= _MAX_PARAMETERS:
        raise DataError(f"{file.where}: the model has {total:,} parameters; legal: 1 to {_MAX_PARAMETERS:,}")


@torch.no_grad()
def _check_batch(file: OnnxFile, body: Body, shape: tuple[int, int, int]) -> None:
    """Two images together must give what each gives alone."""
    images = torch.from_numpy(np.random.default_rng(0).random((2, *shape), np.float32))
    try:
        together, alone = body(images), torch.cat([body(images[:1]), body(images[1:])])
    except (RuntimeError, ValueError, IndexError) as error:  # what tensors without memory let pass
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{file.where}: the model can't be run: {shown(lines[0], 160)}") from None
    if not together.isfinite().all():
        raise DataError(f"{file.where}: the model gives values that are not finite")
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        raise DataError(f"{file.where}: the answer for an image depends on the others of its batch")


def _converted(ready: Prepared, node: Any, graph: Any) -> tuple[list[tuple[str, nn.Module]], tuple[str, ...]]:
    """The modules of a node, in order, with their suffixes, and the values that the first takes."""
    if node.op_type not in _KNOWN:
        raise ready.error(node, f"this operator is not supported; legal: {', '.join(sorted(_KNOWN))}")
    if len(node.output) != 1:
        raise ready.error(node, f"it has {len(node.output)} outputs; legal: one")
    if node.op_type in RESHAPING:
        shape = ready.shapes[node.output[0]]
        if shape[:1] != (BATCH,):
            raise ready.error(node, f"it makes {list(shape)} of a batch of {BATCH}; legal: forms of single images")
        flat = len(shape) == 2 and shape[1] == math.prod(ready.shapes[node.input[0]][1:])
        return [("", nn.Flatten() if flat else Reshape(shape[1:]))], (node.input[0],)
    if node.op_type == "Gelu":
        form = next((attribute.s for attribute in node.attribute if attribute.name == "approximate"), b"none")
        return [("", nn.GELU(form.decode("ascii", "replace")))], tuple(node.input)
    wrapped = library("onnx2torch.onnx_node").OnnxNode
    if node.op_type in _BY_ATTRIBUTES:
        node = _by_attributes(ready, node)
    converter = _converter(ready, node)
    module, mapping = converter(wrapped(node, unique_name=node.name), graph)
    if isinstance(module, nn.Sequential) and len(module) == 2:
        return [("_pad", module[0]), ("", module[1])], tuple(mapping.inputs)
    return [("", module)], tuple(mapping.inputs)


def _by_attributes(ready: Prepared, node: Any) -> Any:
    """The node as versions of ONNX had it that said by attributes what later ones say by inputs."""
    _, name = _BY_ATTRIBUTES[node.op_type]
    made = type(node).FromString(node.SerializeToString())
    taken = [ready.constants.get(each) for each in made.input[1:]]
    if any(array is None for array, each in zip(taken, made.input[1:], strict=True) if each) or len(taken) > 2:
        raise ready.error(node, f"its {name} are computed; legal: {name} in the file")
    made.input[:] = made.input[:1]
    helper = library("onnx").helper
    # What it says is what older versions did anyway.
    for each in [each for each in made.attribute if each.name == "noop_with_empty_axes" and not each.i]:
        made.attribute.remove(each)
    if taken and taken[0] is not None:
        made.attribute.append(helper.make_attribute(name, [int(each) for each in taken[0].reshape(-1)]))
    if len(taken) == 2 and taken[1] is not None:
        made.attribute.append(helper.make_attribute("value", float(taken[1].reshape(-1)[0])))
    return made


def _converter(ready: Prepared, node: Any) -> Callable[[Any, Any], Any]:
    """onnx2torch's converter for the node: of its own version, or of an older one that knows all that the node says."""
    find = library("onnx2torch.node_converters.registry").get_converter
    schemas = library("onnx").defs
    library("onnx2torch")
    newest = min(ready.file.opset, _BY_ATTRIBUTES.get(node.op_type, (ready.file.opset, ""))[0])
    given = {attribute.name for attribute in node.attribute}
    for version in range(newest, 0, -1):
        try:
            schema = schemas.get_schema(node.op_type, version, "")
            converter: Callable[[Any, Any], Any] = find(node.op_type, schema.since_version)
        except (NotImplementedError, schemas.SchemaError):
            continue
        if given <= set(schema.attributes) and len(node.input) <= schema.max_input:
            return converter
    raise ready.error(node, f"onnx2torch doesn't know it as of opset {ready.file.opset}")
