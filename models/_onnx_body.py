"""The torch module that an ONNX graph makes."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from gauntlet.errors import DataError

from ._onnx_file import Graph

__all__ = ["OnnxBody", "assembled"]

_FEATURES = "features"


class OnnxBody(nn.Module):
    """The layers of an ONNX graph under the operators' names. scale: what images in 0..1 are multiplied with."""

    def __init__(self, layers: fx.GraphModule, scale: float, channels_last: bool) -> None:
        super().__init__()
        self.layers, self.scale, self.channels_last = layers, scale, channels_last

    def forward(self, images: Tensor) -> Tensor:
        taken = images * self.scale if self.scale != 1 else images
        logits: Tensor = self.layers(taken.permute(0, 2, 3, 1) if self.channels_last else taken)
        return logits

    def feature_layer(self) -> str:
        """Where the last linear layer's input stands, or the last convolution's output in a model without one."""
        return f"layers.{_FEATURES}"

    def last_conv(self) -> str | None:
        """The last convolution."""
        names = [str(node.target) for node in self.layers.graph.nodes if _is(self.layers, node, nn.Conv2d)]
        return f"layers.{names[-1]}" if names else None


def assembled(graph: Graph, scale: float, path: str) -> OnnxBody:
    """The graph with its weights, on the CPU. Raises DataError, naming the operator, for what can't be converted."""
    import onnx2torch
    from onnx2torch.node_converters.registry import get_converter

    versions = {item.domain: item.version for item in graph.proto.opset_import}
    for node in graph.proto.graph.node:
        try:
            get_converter(node.op_type, versions[node.domain], node.domain)
        except (NotImplementedError, KeyError):
            raise DataError(
                f"{path}: operator {node.name!r}: {node.op_type} of opset {versions.get(node.domain)} is not supported"
            ) from None
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            layers = onnx2torch.convert(graph.proto)
    except Exception as error:  # converters meet hostile attributes with whatever comes to their mind
        raise DataError(f"{path} can't be converted: {' '.join(str(error).split())[:200]}") from None
    _mark_features(layers, path)
    _train(layers)
    return OnnxBody(layers, scale, graph.channels_last)


def _is(layers: fx.GraphModule, node: fx.Node, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(layers.get_submodule(str(node.target)), kind)


def _mark_features(layers: fx.GraphModule, path: str) -> None:
    """Give the features a module of their own, whose output is theirs."""
    nodes = list(layers.graph.nodes)
    linear = [node for node in nodes if _is(layers, node, nn.Linear)]
    conv = [node for node in nodes if _is(layers, node, nn.Conv2d)]
    if not linear and not conv:
        raise DataError(f"{path} has neither a linear layer nor a convolution with weights of its own")
    source = linear[-1].args[0] if linear else conv[-1]
    assert isinstance(source, fx.Node)
    layers.add_module(_FEATURES, nn.Identity())
    with layers.graph.inserting_after(source):
        features = layers.graph.call_module(_FEATURES, (source,))
    source.replace_all_uses_with(features, delete_user_cb=lambda user: user is not features)
    layers.graph.eliminate_dead_code()
    layers.recompile()


def _train(layers: fx.GraphModule) -> None:
    """Weights that own their memory and can be trained, whatever the converter left."""
    for module in layers.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(value.detach().clone().contiguous()))
