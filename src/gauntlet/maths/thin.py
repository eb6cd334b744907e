"""A faster gradient by the image for convolutions of few input channels, where CPU libraries waste their vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

__all__ = ["input_gradient", "thin_gradients"]

_FEW = 4
"""Input channels up to which the detour was faster: 2 times for 3 channels, 3 to 6 times for one."""


@contextmanager
def thin_gradients(network: nn.Module) -> Iterator[None]:
    """For the block, gradients by a thin convolution's input take the detour of `input_gradient`.

    Its weights get no gradient meanwhile: for attacks on images alone. The results differ by rounding. Nothing changes
    on an accelerator.
    """
    layers = [layer for layer in network.modules() if type(layer) is nn.Conv2d and _is_thin(layer)]
    handles = [layer.register_forward_hook(_replace) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_gradient(gradient: Tensor, weight: Tensor, padding: tuple[int, int], shape: torch.Size) -> Tensor:
    """The gradient [N, C, H, W] (`shape`) by the input of a convolution of stride 1, given that by its output.

    A transposed convolution with C outputs would leave most of a vector empty. So each row of the kernel becomes an
    output of its own, and rows are then added up at their distances. padding: at most the kernel's size less one.
    """
    _, channels, height, _ = shape
    outputs, _, rows, columns = weight.shape
    kernel = weight.permute(1, 2, 0, 3).flip(3).reshape(channels * rows, outputs, 1, columns)
    parts = conv2d(gradient, kernel.to(gradient.dtype), padding=(0, columns - 1 - padding[1]))
    parts = parts.view(len(parts), channels, rows, *parts.shape[2:])
    size = gradient.shape[2]
    total = parts.new_zeros(len(parts), channels, height + 2 * padding[0], parts.shape[4])
    for row in range(rows):
        total[:, :, row : row + size] += parts[:, :, row]
    inside: Tensor = total[:, :, padding[0] : padding[0] + height]
    return inside


def _is_thin(layer: nn.Conv2d) -> bool:
    if layer.in_channels > _FEW or layer.weight.device.type != "cpu" or layer.padding_mode != "zeros":
        return False
    plain = layer.groups == 1 and layer.stride == (1, 1) and layer.dilation == (1, 1)
    padding = _padding(layer)
    return (
        plain and padding is not None and all(pad < size for pad, size in zip(padding, layer.kernel_size, strict=True))
    )


def _padding(layer: nn.Conv2d) -> tuple[int, int] | None:
    return None if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1])


def _replace(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    replaced: Tensor = _Thin.apply(inputs[0], output.detach(), layer.weight.detach(), _padding(layer))
    return replaced


class _Thin(torch.autograd.Function):
    """The output as it is, with a way back to the input alone."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, output: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.shape = padding, images.shape
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return input_gradient(gradient, weight, ctx.padding, ctx.shape), None, None, None
