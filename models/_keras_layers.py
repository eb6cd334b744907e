"""Keras's layers as torch modules on images [N, C, H, W]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from gauntlet.formats.keras_weights import Place

from ._keras_config import Layer

__all__ = ["SQUASHING", "Add", "Affine", "Concatenate", "Part", "parts_of"]

SQUASHING = ("softmax", "sigmoid")
"""Activations that turn logits into probabilities and keep their order: dropped at the end of a model."""

_MAX_FILTERS = 1 << 16
_MAX_UNITS = 1 << 20
_MAX_SIDE = 1 << 10

Shape = tuple[int, ...]
Padding = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Part:
    """One module of a layer, called `{layer}{suffix}`. place: where its weights stand in a file."""

    suffix: str
    module: nn.Module
    place: Place | None = None
    squashes: bool = field(default=False)


class Add(nn.Module):
    """The sum of its inputs."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = first + other
        return first


class Concatenate(nn.Module):
    """Its inputs side by side: channels or flat values."""

    def forward(self, *values: Tensor) -> Tensor:
        return torch.cat(values, 1)


class Affine(nn.Module):
    """x * scale + offset."""

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, values: Tensor) -> Tensor:
        return values * self.scale + self.offset


class AveragePool(nn.Module):
    """An average over the pixels that there are, where the padding of TensorFlow's `same` is one-sided."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], padding: Padding) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, maps: Tensor) -> Tensor:
        sums = functional.avg_pool2d(functional.pad(maps, self.padding), self.kernel, self.stride)
        counts = torch.ones_like(maps[:1, :1])
        return sums / functional.avg_pool2d(functional.pad(counts, self.padding), self.kernel, self.stride)


def parts_of(layer: Layer, shapes: list[Shape]) -> list[Part]:
    """The modules of a layer, in order, for inputs of these shapes (without N), made on the current device.

    DataError names a layer that isn't known here, or a setting of it.
    """
    if layer.kind not in _MAKERS:
        raise layer.error(f"this kind of layer is not supported; legal: {', '.join(sorted(_MAKERS))}")
    if layer.config.get("data_format") not in (None, "channels_last"):
        raise layer.error(f"data_format = {layer.config['data_format']!r}; legal: channels_last")
    least, most = (2, 64) if layer.kind in _MERGING else (1, 1)
    if not least <= len(shapes) <= most:
        raise layer.error(f"it has {len(shapes)} inputs; legal: {least}" + (f" to {most}" if most > least else ""))
    if layer.kind in _ON_MAPS and len(shapes[0]) != 3:
        raise layer.error("its input is no image but a row of values")
    return _MAKERS[layer.kind](layer, shapes[0])


def _same(layer: Layer, shape: Shape, kernel: Shape, stride: Shape, dilation: Shape = (1, 1)) -> Padding | None:
    """TensorFlow's padding (left, right, top, bottom); None for `valid`."""
    if layer.choice("padding", ("valid", "same"), "valid") == "valid":
        return None
    sides: list[int] = []
    for axis in (1, 0):
        side, step = shape[1 + axis], stride[axis]
        covered = (-(-side // step) - 1) * step + (kernel[axis] - 1) * dilation[axis] + 1
        missing = max(covered - side, 0)
        sides += [missing // 2, missing - missing // 2]
    left, right, top, bottom = sides
    return left, right, top, bottom


def _is_even(padding: Padding) -> bool:
    return padding[0] == padding[1] and padding[2] == padding[3]


def _conv(layer: Layer, shape: Shape, outputs: int, groups: int, place: Place, bias: bool) -> list[Part]:
    kernel, stride = layer.pair("kernel_size", _MAX_SIDE), layer.pair("strides", _MAX_SIDE, 1)
    dilation = layer.pair("dilation_rate", _MAX_SIDE, 1)
    if shape[0] % groups or outputs % groups:
        raise layer.error(f"{shape[0]} channels to {outputs} can't be split into {groups} groups")
    padding = _same(layer, shape, kernel, stride, dilation) or (0, 0, 0, 0)
    parts = [] if _is_even(padding) else [Part("_pad", nn.ZeroPad2d(padding))]
    inside = (padding[2], padding[0]) if not parts else 0
    module = nn.Conv2d(shape[0], outputs, kernel, stride, inside, dilation, groups, bias)
    return [*parts, Part("", module, place)]


def _conv2d(layer: Layer, shape: Shape) -> list[Part]:
    filters, groups = layer.whole("filters", 1, _MAX_FILTERS), layer.whole("groups", 1, _MAX_FILTERS, 1)
    bias = layer.flag("use_bias", True)
    return [*_conv(layer, shape, filters, groups, Place(layer.name), bias), *_activation(layer, "linear")]


def _depthwise(layer: Layer, shape: Shape) -> list[Part]:
    outputs = shape[0] * layer.whole("depth_multiplier", 1, _MAX_FILTERS, 1)
    place = Place(layer.name, ("depthwise_kernel", "kernel"))
    bias = layer.flag("use_bias", True)
    return [*_conv(layer, shape, outputs, shape[0], place, bias), *_activation(layer, "linear")]


def _separable(layer: Layer, shape: Shape) -> list[Part]:
    between = shape[0] * layer.whole("depth_multiplier", 1, _MAX_FILTERS, 1)
    *pad, deep = _conv(layer, shape, between, shape[0], Place(layer.name, ("depthwise_kernel",)), False)
    filters, bias = layer.whole("filters", 1, _MAX_FILTERS), layer.flag("use_bias", True)
    point = Part("", nn.Conv2d(between, filters, 1, bias=bias), Place(layer.name, ("pointwise_kernel",)))
    return [*pad, Part("_depthwise", deep.module, deep.place), point, *_activation(layer, "linear")]


def _dense(layer: Layer, shape: Shape) -> list[Part]:
    if len(shape) != 1:
        raise layer.error("its input is an image; legal: a row of values, as Flatten gives it")
    module = nn.Linear(shape[0], layer.whole("units", 1, _MAX_UNITS), layer.flag("use_bias", True))
    return [Part("", module, Place(layer.name)), *_activation(layer, "linear")]


def _pool(layer: Layer, shape: Shape) -> list[Part]:
    kernel = layer.pair("pool_size", _MAX_SIDE, 2)
    stride = kernel if layer.config.get("strides") is None else layer.pair("strides", _MAX_SIDE)
    padding = _same(layer, shape, kernel, stride) or (0, 0, 0, 0)
    inside = (padding[2], padding[0])
    # torch refuses an inner padding above half the kernel.
    inner = _is_even(padding) and all(2 * pad <= side for pad, side in zip(inside, kernel, strict=True))
    if layer.kind == "MaxPooling2D":
        if inner:
            return [Part("", nn.MaxPool2d(kernel, stride, inside))]
        return [Part("_pad", nn.ConstantPad2d(padding, -torch.inf)), Part("", nn.MaxPool2d(kernel, stride))]
    if inner:
        return [Part("", nn.AvgPool2d(kernel, stride, inside, count_include_pad=False))]
    return [Part("", AveragePool(kernel, stride, padding))]


def _global(layer: Layer, shape: Shape) -> list[Part]:  # noqa: ARG001
    module = nn.AdaptiveAvgPool2d(1) if layer.kind == "GlobalAveragePooling2D" else nn.AdaptiveMaxPool2d(1)
    flat = [] if layer.flag("keepdims", False) else [Part("_flat", nn.Flatten())]
    return [Part("", module), *flat]


def _batch_norm(layer: Layer, shape: Shape) -> list[Part]:
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, len(shape)):
        raise layer.error(f"axis = {axis!r}; legal: the last one")
    epsilon, kept = layer.number("epsilon", 1e-3, 0, 1), layer.number("momentum", 0.99, 0, 1)
    cls = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    return [Part("", cls(shape[0], epsilon, 1 - kept), Place(layer.name))]


def _activation(layer: Layer, default: str | None = None) -> list[Part]:
    """The activation that a layer names: a module of its own, `{layer}_{activation}`."""
    named = layer.config.get("activation", default)
    if isinstance(named, Mapping):
        inner = named.get("config")
        named = inner if isinstance(inner, str) else named.get("class_name")
    if named in (None, "linear"):
        return []
    if not isinstance(named, str) or named not in _ACTIVATIONS:
        raise layer.error(f"activation = {str(named)[:60]!r}; legal: linear, {', '.join(_ACTIVATIONS)}")
    return [Part(f"_{named}", _ACTIVATIONS[named](), squashes=named in SQUASHING)]


def _alone(layer: Layer, shape: Shape) -> list[Part]:  # noqa: ARG001
    return [Part("", part.module, squashes=part.squashes) for part in _activation(layer)] or [Part("", nn.Identity())]


def _relu(layer: Layer, shape: Shape) -> list[Part]:  # noqa: ARG001
    slope, threshold = layer.number("negative_slope", 0, 0), layer.number("threshold", 0)
    top = None if layer.config.get("max_value") is None else layer.number("max_value", 0, 0)
    if threshold or (slope and top is not None):
        raise layer.error("legal: a threshold of 0, and either a negative_slope or a max_value")
    if top is not None:
        return [Part("", nn.Hardtanh(0, top) if top != 6 else nn.ReLU6())]
    return [Part("", nn.LeakyReLU(slope) if slope else nn.ReLU())]


def _leaky(layer: Layer, shape: Shape) -> list[Part]:  # noqa: ARG001
    return [
        Part("", nn.LeakyReLU(layer.number("negative_slope" if "negative_slope" in layer.config else "alpha", 0.3)))
    ]


def _softmax(layer: Layer, shape: Shape) -> list[Part]:  # noqa: ARG001
    if layer.config.get("axis", -1) not in (-1, 1):
        raise layer.error("legal: the last axis")
    return [Part("", nn.Softmax(1), squashes=True)]


def _dropout(layer: Layer, shape: Shape) -> list[Part]:  # noqa: ARG001
    rate = layer.number("rate", 0.5, 0, 1)
    return [Part("", nn.Dropout(rate) if layer.kind == "Dropout" else nn.Dropout2d(rate))]


def _zero_padding(layer: Layer, shape: Shape) -> list[Part]:  # noqa: ARG001
    value = layer.config.get("padding", 1)
    rows = value if isinstance(value, list) and len(value) == 2 else [value, value]
    sides = [side for axis in reversed(rows) for side in (axis if isinstance(axis, list) else [axis, axis])]
    if len(sides) != 4 or not all(type(side) is int and 0 <= side <= _MAX_SIDE for side in sides):
        raise layer.error(f"padding = {str(value)[:60]}; legal: whole numbers from 0 to {_MAX_SIDE}")
    left, right, top, bottom = sides
    return [Part("", nn.ZeroPad2d((left, right, top, bottom)))]


def _merged(layer: Layer, shape: Shape) -> list[Part]:
    if layer.kind == "Add":
        return [Part("", Add())]
    if layer.config.get("axis", -1) not in (-1, len(shape)):
        raise layer.error(f"axis = {layer.config['axis']!r}; legal: the last one")
    return [Part("", Concatenate())]


def _rescaling(layer: Layer, shape: Shape) -> list[Part]:  # noqa: ARG001
    return [Part("", Affine(layer.number("scale", 1), layer.number("offset", 0)))]


_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softmax": lambda: nn.Softmax(1),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
}

_MERGING = ("Add", "Concatenate")
_ON_MAPS = (
    *("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D"),
    *("GlobalMaxPooling2D", "ZeroPadding2D", "SpatialDropout2D"),
)
_MAKERS: Mapping[str, Callable[[Layer, Shape], list[Part]]] = {
    "Conv2D": _conv2d,
    "DepthwiseConv2D": _depthwise,
    "SeparableConv2D": _separable,
    "Dense": _dense,
    "MaxPooling2D": _pool,
    "AveragePooling2D": _pool,
    "GlobalAveragePooling2D": _global,
    "GlobalMaxPooling2D": _global,
    "BatchNormalization": _batch_norm,
    "Activation": _alone,
    "ReLU": _relu,
    "LeakyReLU": _leaky,
    "ELU": lambda layer, _: [Part("", nn.ELU(layer.number("alpha", 1)))],
    "Softmax": _softmax,
    "Add": _merged,
    "Concatenate": _merged,
    "Flatten": lambda _, __: [Part("", nn.Flatten())],
    "Dropout": _dropout,
    "SpatialDropout2D": _dropout,
    "ZeroPadding2D": _zero_padding,
    "Rescaling": _rescaling,
}
