"""A network cut at one of its layers: what doesn't depend on the layer is computed once, however often it changes."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.fx import GraphModule, Node
from torch.nn import functional

__all__ = ["Cut", "Split", "cut"]

_ACTIVATIONS: frozenset[Any] = frozenset(
    {
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
        *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
        *(functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.selu, functional.celu),
        *(functional.gelu, functional.silu, functional.mish, functional.softplus, functional.hardtanh),
        *(functional.hardswish, functional.hardsigmoid, torch.relu, torch.tanh, torch.sigmoid),
        *("relu", "tanh", "sigmoid"),
    }
)
_SUMS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add"})
_POINTWISE: frozenset[Any] = _ACTIVATIONS | _SUMS | {nn.Identity, nn.Dropout, nn.Dropout2d, functional.dropout}
_OF_MAPS: frozenset[Any] = frozenset(
    {
        *(nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
        *(functional.max_pool2d, torch.max_pool2d, functional.avg_pool2d),
        *(functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d),
    }
)
_FLATTENING: frozenset[Any] = frozenset({nn.Flatten, torch.flatten, "flatten"})

_IN_PLACE = frozenset({"iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "iand", "ior", "ixor", "setitem"})


class _Form(Enum):
    """Where a value keeps its channels: [N, C, H, W], or [N, C * H * W] with each channel's values in a row."""

    MAPS = auto()
    FLAT = auto()


@dataclass(frozen=True, eq=False)
class Split:
    """What follows the layer, where it keeps the channels apart up to a linear layer.

    before: (maps [N, C, H, W], *sides) to flat [N, C * F], F values of each channel in a row, which depend on no other
    channel. linear: flat to [N, D]. after: [N, D] to logits, image by image.
    """

    before: GraphModule
    linear: nn.Linear
    after: GraphModule


class Cut:
    """A traced body, cut after one of its layers; each part is made when it is asked for.

    The parts hold the body's own layers in the mode that they are in, and share their weights.
    """

    def __init__(self, body: nn.Module, nodes: Sequence[Node], layer: Node, logits: Node) -> None:
        self._body = body
        self._nodes = nodes
        self._layer = layer
        self._logits = logits
        self._behind: dict[Node, None] = {}
        for node in nodes:
            if any(source is layer or source in self._behind for source in node.all_input_nodes):
                self._behind[node] = None
        sources = [source for node in self._behind for source in node.all_input_nodes]
        self._sides = [node for node in dict.fromkeys(sources) if node is not layer and node not in self._behind]
        self._read = [layer, *self._sides]

    @cached_property
    def front(self) -> GraphModule:
        """The body's input to (maps, *sides): the layer's output, and what else the rest reads."""
        first = [node for node in self._nodes if node.op == "placeholder"]
        others = [node for node in self._nodes if node.op != "placeholder" and node not in self._behind]
        return self._part(others, first, tuple(self._read))

    @cached_property
    def rest(self) -> GraphModule:
        """(maps, *sides) to logits."""
        return self._part(list(self._behind), self._read, self._logits)

    @cached_property
    def activation(self) -> GraphModule | None:
        """(maps, *sides) to the first activation behind the layer [N, C, ...], with at most normalisation, pooling and
        sums between; None where another kind of layer comes first.
        """
        active = next((node for node in self._forms if self._kind(node) in _ACTIVATIONS), None)
        return None if active is None else self._part(self._up_to(active), self._read, active)

    def _part(self, nodes: Sequence[Node], inputs: Sequence[Node], output: Node | tuple[Node, ...]) -> GraphModule:
        graph = fx.Graph()
        copies = {node: graph.placeholder(node.name) for node in inputs}
        for node in nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[output] if isinstance(output, Node) else tuple(copies[node] for node in output))
        return GraphModule(self._body, graph)

    def _up_to(self, last: Node) -> list[Node]:
        behind = list(self._behind)
        return behind[: behind.index(last) + 1]

    def _kind(self, node: Node) -> Any:
        """What a node does: the class of its module, its function, or its method's name."""
        return type(self._body.get_submodule(str(node.target))) if node.op == "call_module" else node.target

    def can_be_cut(self) -> bool:
        """Whether the logits depend on the layer, and nothing after it changes in place what doesn't."""
        after = self._nodes[self._nodes.index(self._layer) + 1 :]
        spoils = any(self._is_in_place(node) and not self._changes_behind(node) for node in after)
        return self._logits in self._behind and not spoils

    def _changes_behind(self, node: Node) -> bool:
        changed = node.args[0] if node.args else None
        return changed is self._layer or changed in self._behind

    def _is_in_place(self, node: Node) -> bool:
        if node.op == "call_module":
            return bool(vars(self._body.get_submodule(str(node.target))).get("inplace"))
        if node.op not in ("call_function", "call_method"):
            return False
        name = node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))
        return name.endswith("_") or name in _IN_PLACE or bool(node.kwargs.get("inplace")) or "out" in node.kwargs

    @cached_property
    def _forms(self) -> dict[Node, _Form]:
        """The nodes whose values keep the channels apart, in order."""
        forms = {self._layer: _Form.MAPS}
        for node in self._behind:
            found = {forms.get(source) for source in node.all_input_nodes if source not in self._sides}
            form = found.pop()
            if found or form is None:
                continue
            after = self._form_after(node, form)
            if after is not None:
                forms[node] = after
        return forms

    def _form_after(self, node: Node, form: _Form) -> _Form | None:
        kind = self._kind(node)
        settings = self._settings(node)
        if settings.get("return_indices") or (kind is functional.dropout and settings.get("training", True)):
            return None
        if kind in _POINTWISE or (kind in _OF_MAPS and form is _Form.MAPS):
            return form
        if kind in _FLATTENING and (settings.get("start_dim"), settings.get("end_dim", -1)) == (1, -1):
            return _Form.FLAT
        return None

    def _settings(self, node: Node) -> Mapping[str, Any]:
        if node.op == "call_module":
            return vars(self._body.get_submodule(str(node.target)))
        named = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False))
        return {**named, **node.kwargs}

    @cached_property
    def split(self) -> Split | None:
        """None where the rest mixes channels before a linear layer."""
        forms = self._forms
        linear = next((node for node in self._behind if node not in forms), None)
        if linear is None or self._kind(linear) is not nn.Linear:
            return None
        (source,) = linear.all_input_nodes
        after = [node for node in self._behind if node not in forms and node is not linear]
        leaks = any(user not in forms and user is not linear for node in forms for user in node.users)
        mixes = any(read is not linear and read not in after for node in after for read in node.all_input_nodes)
        if forms.get(source) is not _Form.FLAT or leaks or mixes:
            return None
        before = [node for node in self._behind if node in forms]
        module = self._body.get_submodule(str(linear.target))
        assert isinstance(module, nn.Linear)
        return Split(
            before=self._part(before, self._read, source),
            linear=module,
            after=self._part(after, [linear], self._logits),
        )


class _Tracer(fx.Tracer):
    """Keeps the layer whole, whoever defined it."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.layer or super().is_leaf_module(m, module_qualified_name)


def cut(body: nn.Module, layer: str) -> Cut | None:
    """`body` (eval mode) cut after the module at the path `layer`.

    None where torch.fx can't trace it, where the layer isn't called exactly once, and where something behind it
    changes in place what was computed without it.
    """
    try:
        graph = _Tracer(layer).trace(body)
    except Exception:  # a forward method of any kind has just been run on placeholders
        return None
    nodes = [node for node in graph.nodes if node.op != "output"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    calls = [node for node in nodes if node.op == "call_module" and node.target == layer]
    if len(calls) != 1 or not isinstance(output.args[0], Node):
        return None
    parts = Cut(body, nodes, calls[0], output.args[0])
    return parts if parts.can_be_cut() else None
