"""The torch module that a Keras model's graph makes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from gauntlet.errors import DataError
from gauntlet.formats.keras_weights import Place

from ._graph import Body, free_name
from ._keras_config import Graph, Layer
from ._keras_layers import Affine, Part, parts_of

__all__ = ["assembled"]

_MAX_PARAMETERS = 1 << 29
_MAX_VALUES = 1 << 27


@dataclass(eq=False)
class _Builder:
    """values: layer name to the module that gives its output. shapes: of each module's output, without N."""

    graph: Graph
    modules: dict[str, nn.Module] = field(default_factory=dict)
    steps: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def begin(self, layer: Layer, shape: tuple[int, int, int], scale: float) -> None:
        name = free_name(self.modules, layer.name)
        self.modules[name] = nn.Identity() if scale == 1 else Affine(scale, 0)
        self.steps.append((name, ()))
        self.values[layer.name], self.shapes[name] = name, shape

    def apply(self, layer: Layer) -> None:
        sources = tuple(self.values[name] for name in layer.inputs)
        parts = parts_of(layer, [self.shapes[source] for source in sources])
        if layer.name == self.graph.output and parts[-1].squashes:
            parts = parts[:-1]
        for part in parts:
            name = free_name(self.modules, f"{layer.name}{part.suffix}")
            self.shapes[name] = _output(layer, part, [self.shapes[source] for source in sources])
            self.modules[name] = part.module
            self.steps.append((name, sources))
            if part.place is not None:
                self.places[name] = part.place
            sources = (name,)
        self.values[layer.name] = sources[0]


def _output(layer: Layer, part: Part, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Found by trying, on tensors without memory."""
    try:
        made = part.module.eval()(*(torch.empty(1, *shape, device="meta") for shape in shapes))
    except (RuntimeError, ValueError, IndexError, OverflowError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise layer.error(f"it can't take {', '.join(map(str, map(list, shapes)))} ({text})") from None
    if made.numel() > _MAX_VALUES or not made.numel():
        raise layer.error(f"it would give {list(made.shape[1:])} values an image; legal: 1 to {_MAX_VALUES:,}")
    part.module.train()
    return tuple(made.shape[1:])


def assembled(graph: Graph, shape: tuple[int, int, int], scale: float = 1) -> Body:
    """The graph for images of `shape` (C, H, W), on the meta device: without weights.

    scale: what the images are multiplied by first. A softmax or sigmoid at the end is dropped, so that it gives
    logits. DataError names the layer that won't do.
    """
    first, *others = graph.layers
    with torch.device("meta"):
        builder = _Builder(graph)
        builder.begin(first, shape, scale)
        for layer in others:
            if layer.kind == "InputLayer":
                raise layer.error("a second input; legal: one")
            builder.apply(layer)
            total = sum(item.numel() for module in builder.modules.values() for item in module.parameters())
            if total > _MAX_PARAMETERS:
                raise layer.error(f"with it the model has {total:,} parameters; legal: at most {_MAX_PARAMETERS:,}")
        given = builder.shapes[builder.steps[-1][0]]
        if len(given) != 1:
            raise DataError(f"{graph.where}: the model gives {list(given)} an image; legal: one value for each class")
        if _is_flattened(builder):
            raise DataError(f"{graph.where}: the model ends in flattened maps; legal: a dense layer or a pooling")
        return Body(builder.modules, tuple(builder.steps), builder.places, builder.values, given[0])


def _is_flattened(builder: _Builder) -> bool:
    """Whether the logits are flattened maps, which Keras would order otherwise."""
    sources = dict(builder.steps)
    waiting = [builder.steps[-1][0]]
    while waiting:
        name = waiting.pop()
        if isinstance(builder.modules[name], nn.Linear):
            continue
        for source in sources[name]:
            if len(builder.shapes[source]) == 3 and builder.shapes[source][1:] != (1, 1):
                if len(builder.shapes[name]) == 1:
                    return True
            else:
                waiting.append(source)
    return False
