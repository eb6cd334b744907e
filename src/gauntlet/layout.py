"""Memory layouts: what keeps a network's images and gradients channels_last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gauntlet.images import Images, to_float

__all__ = ["channels_last_gradients", "to_batch"]


def to_batch(images: Tensor) -> Images:
    """uint8 [n, C, H, W] as float32 in [0, 1] and channels_last, put in that order while they are small."""
    return to_float(images.contiguous(memory_format=torch.channels_last))


@contextmanager
def channels_last_gradients(network: nn.Module) -> Iterator[None]:
    """Inside, what a Flatten layer of `network` hands back is laid out as what it got.

    Its gradient is contiguous otherwise, and the layers below then work across two layouts: pooling took six times as
    long (docs/benchmarks.md). The values stay the same.
    """
    handles = [
        module.register_forward_pre_hook(_match) for module in network.modules() if isinstance(module, nn.Flatten)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _match(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
    images = inputs[0]
    if images.requires_grad and images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last):
        images.register_hook(_in_channels_last)


def _in_channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)
