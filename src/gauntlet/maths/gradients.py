"""Gradients by the image alone, for attacks and searches that leave the network as it is: what a CPU wastes on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gauntlet.inference import as_it_is, pooling_early
from gauntlet.maths.thin import thin_gradients

__all__ = ["image_gradients"]


@contextmanager
def image_gradients(network: nn.Module) -> Iterator[None]:
    """For the block, `network` computes the same values, and gradients by the image that differ by rounding alone.

    On a CPU thin convolutions take the detour of `gauntlet.maths.thin`, a batch normalisation in eval mode hands its
    gradient back scaled (torch's sums up what only its parameters would need: a third of a PGD step), and pools come
    before what only rises (`gauntlet.inference`): of values that are equal afterwards alone, the larger one before gets
    the gradient. Parameters of convolutions that are thin and of normalisations get none. Nothing changes on an
    accelerator.
    """
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        yield
        return
    with ExitStack() as ways:
        ways.enter_context(thin_gradients(network))
        ways.enter_context(pooling_early(network, None, _differentiable))
        for layer in network.modules():
            if type(layer) is nn.BatchNorm2d and "forward" not in vars(layer):
                handle = layer.register_forward_hook(_replace)
                ways.callback(handle.remove)
        yield


def _differentiable(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return partial(_normalised, layer) if isinstance(layer, nn.BatchNorm2d) else as_it_is(layer)


def _normalised(layer: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    return _replaced(layer, maps, as_it_is(layer)(maps.detach()))


def _replace(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    fixed = isinstance(layer, nn.BatchNorm2d) and not layer.training and layer.running_var is not None
    return _replaced(layer, inputs[0], output.detach()) if fixed else output


def _replaced(layer: nn.Module, maps: Tensor, output: Tensor) -> Tensor:
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_var is not None
    scale = (layer.running_var + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.detach()
    replaced: Tensor = _Scaled.apply(maps, output, scale.view(1, -1, 1, 1))
    return replaced


class _Scaled(torch.autograd.Function):
    """The output as it is, with a way back to the input alone."""

    @staticmethod
    def forward(ctx: Any, _maps: Tensor, output: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return gradient * scale.to(gradient.dtype), None, None
