"""Training: a first convolution and the batch normalisation behind it as one convolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from gauntlet.network import Network
from gauntlet.patches import PatchMoments, moments_of

__all__ = ["normalised_first"]

WORTH_VALUES = 1 << 19
"""Values in the first maps of a batch from which the few dozen small operations cost less than what they spare."""
WORTH_FLOPS = 64
"""Operations that the patches' covariance may cost for each of those values."""


@contextmanager
def normalised_first(network: Network) -> Iterator[None]:
    """Inside, in training mode on a CPU, the filters of `network`'s first layer are normalised instead of its maps.

    A map's value is the product w.p of a filter and a patch, so that its mean and variance over the batch are w.m and
    w.C.w, with the patches' mean m and covariance C: the maps, the largest of most networks, are neither read for it
    nor written anew, and nor are their gradients. The values are those of batch normalisation (Ioffe and Szegedy 2015,
    arXiv:1502.03167) up to rounding; its running statistics are of the exact maps, not of those rounded to bf16.
    """
    layers = list(network.body) if type(network.body) is nn.Sequential else []
    if len(layers) < 2 or not _fits(layers[0], layers[1]) or any(layers.count(each) > 1 for each in layers[:2]):
        yield
        return
    first = _First(layers[0], layers[1])
    before = [vars(layer).get("forward") for layer in layers[:2]]
    vars(layers[0])["forward"], vars(layers[1])["forward"] = first.convolve, first.normalise
    try:
        yield
    finally:
        for layer, earlier in zip(layers, before, strict=False):
            if earlier is None:
                vars(layer).pop("forward", None)
            else:
                vars(layer)["forward"] = earlier


def _fits(conv: nn.Module, norm: nn.Module) -> bool:
    if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return False
    plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.bias is None
    padded = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and padded and norm.affine and norm.track_running_stats and norm.momentum is not None


class _First:
    """What stands for the forward of both layers."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        self._conv, self._norm = conv, norm
        self._normalised: Tensor | None = None

    def convolve(self, images: Tensor) -> Tensor:
        """The maps of the images; normalised where that may be."""
        moments = self._moments(images)
        if moments is None:
            return nn.Conv2d.forward(self._conv, images)
        weight, bias = self._filters(images, moments)
        self._normalised = conv2d(images, weight, bias, padding=self._conv.padding)
        return self._normalised

    def normalise(self, maps: Tensor) -> Tensor:
        """The normalised maps of those that `convolve` gave."""
        done, self._normalised = maps is self._normalised, None
        return maps if done else nn.BatchNorm2d.forward(self._norm, maps)

    def _moments(self, images: Tensor) -> PatchMoments | None:
        """What computes the patches' moments; None where the maps have to be normalised themselves."""
        conv, norm = self._conv, self._norm
        heard = any(layer._forward_hooks or layer._forward_pre_hooks for layer in (conv, norm))
        # A gradient of the images would have to go through the statistics as well.
        if heard or not norm.training or images.requires_grad or images.device.type != "cpu" or images.ndim != 4:
            return None
        if not images.dtype == conv.weight.dtype == torch.float32:
            return None
        assert not isinstance(conv.padding, str)
        _, channels, height, width = images.shape
        moments = moments_of((channels, height, width), conv.kernel_size, conv.padding)
        values = conv.out_channels * moments.places[0] * moments.places[1]
        pays = len(images) * values >= WORTH_VALUES and moments.flops() <= WORTH_FLOPS * values
        return moments if pays else None

    def _filters(self, images: Tensor, moments: PatchMoments) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that yields normalised maps; the running statistics move on."""
        conv, norm = self._conv, self._norm
        with torch.autocast("cpu", enabled=False):
            with torch.no_grad():
                patch, covariance = moments(images)
            weights = conv.weight.permute(0, 2, 3, 1).flatten(1)
            mean = weights @ patch
            variance = ((weights @ covariance) * weights).sum(1).clamp_min(0)
            _move_on(norm, mean.detach(), variance.detach(), len(images) * moments.places[0] * moments.places[1])
            scale = norm.weight * (variance + norm.eps).rsqrt()
            return conv.weight * scale.view(-1, 1, 1, 1), norm.bias - mean * scale


def _move_on(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """The running statistics after a batch, as BatchNorm2d keeps them: the variance is the unbiased one."""
    momentum = norm.momentum
    assert momentum is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), momentum)
    norm.num_batches_tracked.add_(1)
