"""The `model_config` of a Keras model, from a file of unknown origin, as a list of layers in the order of their use."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from gauntlet.errors import DataError
from gauntlet.formats.hdf5 import opened

__all__ = ["Graph", "Layer", "model_config", "read_graph"]

_MAX_LAYERS = 2000
_MAX_TEXT = 1 << 26
_MODELS = ("Sequential", "Functional", "Model")


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its settings as the file gives them, read one by one with a check. inputs: names of layers.

    DataError of every reader names the file and the layer.
    """

    where: str
    name: str
    kind: str
    config: Mapping[str, Any]
    inputs: tuple[str, ...]

    def error(self, problem: str) -> DataError:
        """The error for this layer."""
        return DataError(f"{self.where}: layer {self.name} ({self.kind}): {problem}")

    def whole(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number from least to most."""
        return self._whole(key, self.config.get(key, default), least, most)

    def pair(self, key: str, most: int, default: int | None = None) -> tuple[int, int]:
        """(height, width), each from 1; one number stands for both."""
        value = self.config.get(key, default)
        values = value if isinstance(value, list) and len(value) == 2 else [value, value]
        high, wide = (self._whole(key, item, 1, most) for item in values)
        return high, wide

    def _whole(self, key: str, value: object, least: int, most: int) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            raise self.error(f"{key} = {_shown(value)}; legal: whole numbers from {least} to {most}")
        return value

    def number(self, key: str, default: float, least: float = -1e6, most: float = 1e6) -> float:
        """A finite number from least to most."""
        value = self.config.get(key, default)
        if isinstance(value, Mapping):  # a number of numpy's, as some versions write it
            value = value.get("value")
        if type(value) not in (int, float) or not (math.isfinite(value) and least <= value <= most):
            raise self.error(f"{key} = {_shown(value)}; legal: numbers from {least:g} to {most:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.config.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} = {_shown(value)}; legal: true, false")
        return value

    def choice(self, key: str, legal: Sequence[str], default: str) -> str:
        """One of a few words."""
        value = self.config.get(key, default)
        if value not in legal:
            raise self.error(f"{key} = {_shown(value)}; legal: {', '.join(legal)}")
        return str(value)

    def shape(self) -> tuple[int | None, ...] | None:
        """The images' shape (H, W, C) that an input layer, or the first one, declares; None where it doesn't."""
        value = self.config.get("batch_shape", self.config.get("batch_input_shape"))
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
            value = value[0]
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 4 or not all(_is_side(side) for side in value[1:]):
            raise self.error(f"its input is {_shown(value)}; legal: images [null, height, width, channels]")
        return tuple(value[1:])


@dataclass(frozen=True)
class Graph:
    """layers: in an order in which each one's inputs come before it; the first is the input. output: a layer's name.

    shape: (H, W, C) of the images, None where the model takes any.
    """

    where: str
    layers: tuple[Layer, ...]
    output: str
    shape: tuple[int | None, ...] | None


def read_graph(path: Path) -> Graph:
    """The graph of a whole-model HDF5 file or of a `.json` file of the same content.

    DataError for a file without one, for damaged JSON, for anything but one plain chain or graph of Keras's own layers
    from one input to one output.
    """
    text = model_config(path)
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: its model_config is no legal JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict) or found.get("class_name") not in _MODELS:
        kind = _shown(found.get("class_name")) if isinstance(found, dict) else "no object"
        raise DataError(f"{path}: its model_config describes {kind}; legal: {', '.join(_MODELS)}")
    config = found.get("config")
    if isinstance(config, list):  # Keras before 2.2.3
        config = {"layers": config}
    if not isinstance(config, dict) or not isinstance(config.get("layers"), list) or not config["layers"]:
        raise DataError(f"{path}: its model_config lists no layers")
    if len(config["layers"]) > _MAX_LAYERS:
        raise DataError(f"{path}: its model_config lists {len(config['layers']):,} layers; legal: up to {_MAX_LAYERS}")
    if found["class_name"] == "Sequential":
        return _sequential(str(path), config["layers"])
    return _functional(str(path), config)


def model_config(path: Path) -> str:
    """The JSON text of a model's form. DataError for a file that holds weights only, or none that can be read."""
    if path.suffix.lower() != ".json":
        with opened(path) as file:
            text = file.text("model_config")
        if text is None:
            raise DataError(
                f"{path} has no model_config, so that it holds weights only: name the architecture (--network of "
                "gauntlet audit and eval), or give gauntlet predict the bundle that an audit exports"
            )
        return text
    try:
        if path.stat().st_size > _MAX_TEXT:
            raise DataError(f"{path} has more than {_MAX_TEXT:,} bytes, which no model_config has")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _sequential(where: str, entries: list[Any]) -> Graph:
    layers: list[Layer] = []
    for number, entry in enumerate(entries):
        read = _layer(where, entry, number, (layers[-1].name,) if layers else ())
        if not layers and read.kind != "InputLayer":
            layers.append(Layer(where, "input" if read.name != "input" else "input_0", "InputLayer", read.config, ()))
            read = Layer(where, read.name, read.kind, read.config, (layers[0].name,))
        layers.append(read)
    _refuse_twins(where, layers)
    return Graph(where, tuple(layers), layers[-1].name, layers[0].shape())


def _functional(where: str, config: Mapping[str, Any]) -> Graph:
    layers = [_layer(where, entry, number, _inbound(where, entry)) for number, entry in enumerate(config["layers"])]
    _refuse_twins(where, layers)
    known = {layer.name: layer for layer in layers}
    given = [layer for layer in layers if layer.kind == "InputLayer"]
    outputs = _ends(config.get("output_layers"))
    if len(given) != 1 or len(outputs) != 1 or outputs[0] not in known:
        raise DataError(f"{where}: the model has {len(given)} inputs and {len(outputs)} outputs; legal: one of each")
    for layer in layers:
        for name in layer.inputs:
            if name not in known:
                raise layer.error(f"its input {_shown(name)} is no layer of the model")
        if not layer.inputs and layer is not given[0]:
            raise layer.error("it has no input")
    needed, waiting = {outputs[0]}, [outputs[0]]
    while waiting:
        fresh = set(known[waiting.pop()].inputs) - needed
        needed |= fresh
        waiting.extend(sorted(fresh))
    try:
        order = list(TopologicalSorter({name: known[name].inputs for name in needed}).static_order())
    except CycleError as error:
        raise DataError(f"{where}: the layers {', '.join(error.args[1])} feed each other") from None
    if given[0].name not in needed:
        raise DataError(f"{where}: the output doesn't depend on the input {given[0].name}")
    places = {layer.name: number for number, layer in enumerate(layers)}
    return Graph(where, tuple(known[name] for name in _stable(order, known, places)), outputs[0], given[0].shape())


def _stable(order: list[str], known: Mapping[str, Layer], places: Mapping[str, int]) -> list[str]:
    """The file's own order where each layer stands behind its inputs there, as it usually does."""
    listed = sorted(order, key=places.__getitem__)
    behind = all(places[source] < places[name] for name in listed for source in known[name].inputs)
    return listed if behind else order


def _layer(where: str, entry: object, number: int, inputs: tuple[str, ...]) -> Layer:
    if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict):
        raise DataError(f"{where}: layer number {number} of its model_config is no layer")
    config, kind = entry["config"], entry.get("class_name")
    name = entry.get("name", config.get("name"))
    if not isinstance(kind, str) or not isinstance(name, str) or not 0 < len(name) <= 200:
        raise DataError(f"{where}: layer number {number} of its model_config has no name or no class")
    layer = Layer(where, name, kind, config, inputs)
    if entry.get("module", "keras.layers").split(".")[0] not in ("keras", "tf_keras") or ">" in kind:
        raise layer.error(f"it is a custom layer of {_shown(entry.get('module', kind))}; legal: Keras's own layers")
    if "keras" not in str(entry.get("registered_name") or "keras").lower() and entry.get("registered_name") != kind:
        raise layer.error("it is a custom layer; legal: Keras's own layers")
    return layer


def _inbound(where: str, entry: object) -> tuple[str, ...]:
    nodes = entry.get("inbound_nodes", []) if isinstance(entry, dict) else []
    if not isinstance(nodes, list) or len(nodes) > 1:
        name = _shown(entry.get("name")) if isinstance(entry, dict) else "?"
        raise DataError(f"{where}: layer {name} is used more than once; legal: each layer in one place")
    if not nodes:
        return ()
    found: list[str] = []
    _collect(nodes[0], found)
    return tuple(found)


def _collect(node: Any, found: list[str], depth: int = 0) -> None:
    """The names in a node: ["conv_1", 0, 0, {}] of Keras 2, or {"keras_history": ["conv_1", 0, 0]} of Keras 3."""
    if depth > 8 or len(found) > _MAX_LAYERS:
        return
    if isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and type(node[1]) is int:
            found.append(node[0])
            return
        for item in node:
            _collect(item, found, depth + 1)
    elif isinstance(node, dict):
        history = node.get("config", {}).get("keras_history") if isinstance(node.get("config"), dict) else None
        if isinstance(history, list) and history and isinstance(history[0], str):
            found.append(history[0])
        elif "args" in node:
            _collect(node["args"], found, depth + 1)


def _ends(value: object) -> list[str]:
    found: list[str] = []
    _collect(value, found)
    return found


def _refuse_twins(where: str, layers: Sequence[Layer]) -> None:
    names = [layer.name for layer in layers]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{where}: two layers are called {name}")


def _is_side(value: object) -> bool:
    return value is None or (type(value) is int and 1 <= value <= 1 << 16)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
