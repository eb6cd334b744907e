"""Max pooling in inference: as maxima of strided views up to three times as fast on a CPU, and exactly the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["halved", "strided_pooling"]


@contextmanager
def strided_pooling(network: nn.Module) -> Iterator[None]:
    """Inside, the 2x2 pools of `network` that don't overlap take the short way. For blocks without gradients.

    Only on a CPU. A gradient would be shared by equal values, where torch's pooling gives it to the first.
    """
    pools = [module for module in network.modules() if type(module) is nn.MaxPool2d and _is_plain(module)]
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        pools = []
    for pool in pools:
        # An attribute of the instance stands before the method of its class.
        vars(pool)["forward"] = halved
    try:
        yield
    finally:
        for pool in pools:
            del vars(pool)["forward"]


def _is_plain(pool: nn.MaxPool2d) -> bool:
    sizes = [value if isinstance(value, tuple) else (value, value) for value in (pool.kernel_size, pool.stride)]
    alone = pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1))
    return sizes == [(2, 2), (2, 2)] and alone and not (pool.ceil_mode or pool.return_indices)


def halved(images: Tensor) -> Tensor:
    """[..., H, W] to [..., H // 2, W // 2]: the largest of each 2x2 values; an odd last row or column is left out."""
    height, width = images.shape[-2] // 2 * 2, images.shape[-1] // 2 * 2
    rows = torch.maximum(images[..., 0:height:2, :], images[..., 1:height:2, :])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
