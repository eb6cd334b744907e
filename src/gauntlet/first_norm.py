"""Training: a first convolution and the batch normalisation behind it as one convolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from gauntlet.inference import standing_in
from gauntlet.network import Network
from gauntlet.patches import PatchForm, moments_of

__all__ = ["normalised_first"]

WORTH_VALUES = 1 << 20
"""Values in the first maps of a batch from which the few dozen small operations cost less than what they spare: with
800,000 they cost as much (docs/benchmarks.md).
"""
WORTH_FLOPS = 30
"""Operations that the patches' covariance may cost for each of those values: with 32, in colour, nothing is won."""


@contextmanager
def normalised_first(network: Network) -> Iterator[None]:
    """Inside, the filters of `network`'s first layer are normalised in training mode instead of its maps.

    A map's value is the product w.p of a filter and a patch, so that its mean and variance over the batch are w.m and
    w.C.w, with the patches' mean m and covariance C: the maps, the largest of most networks, are neither read for it
    nor written anew, and nor are their gradients. The values are those of batch normalisation (Ioffe and Szegedy 2015,
    arXiv:1502.03167) up to rounding; its running statistics are of the exact maps, not of those rounded to bf16.

    So for float32 images on a CPU that need no gradient, where the two layers begin a Sequential, nobody listens to
    them, and the maps are large enough for it to pay; everything else takes the usual way.
    """
    body = network.body
    if type(body) is not nn.Sequential or len(body) < 2 or not _fits(body[0], body[1]):
        yield
        return
    with standing_in({body: _Shorter(body)}):
        yield


def _fits(conv: nn.Module, norm: nn.Module) -> bool:
    if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return False
    plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.bias is None
    padded = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and padded and norm.affine and norm.track_running_stats and norm.momentum is not None


class _Shorter:
    """What stands for the forward of a Sequential that begins with the two layers."""

    def __init__(self, body: nn.Sequential) -> None:
        self._body = body

    def __call__(self, images: Tensor) -> Tensor:
        conv, norm = cast(nn.Conv2d, self._body[0]), cast(nn.BatchNorm2d, self._body[1])
        form = _form(conv, norm, images)
        if form is None:
            return cast(Tensor, nn.Sequential.forward(self._body, images))  # type: ignore[no-untyped-call]
        weight, bias = _filters(conv, norm, images, form)
        maps = conv2d(images, weight, bias, padding=conv.padding)
        for layer in list(self._body)[2:]:
            maps = layer(maps)
        return maps


def _form(conv: nn.Conv2d, norm: nn.BatchNorm2d, images: Tensor) -> PatchForm | None:
    """That of the patches; None where the maps have to be normalised themselves."""
    # A gradient of the images would have to go through the statistics as well.
    if not norm.training or images.requires_grad or images.device.type != "cpu" or images.ndim != 4:
        return None
    if not images.dtype == conv.weight.dtype == torch.float32 or _is_heard(conv) or _is_heard(norm):
        return None
    assert not isinstance(conv.padding, str)
    count, channels, height, width = images.shape
    form = PatchForm((channels, height, width), conv.kernel_size, conv.padding)
    values = conv.out_channels * form.places
    return form if count * values >= WORTH_VALUES and form.flops <= WORTH_FLOPS * values else None


def _is_heard(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _filters(conv: nn.Conv2d, norm: nn.BatchNorm2d, images: Tensor, form: PatchForm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that yields normalised maps; the running statistics move on."""
    with torch.autocast("cpu", enabled=False):
        with torch.no_grad():
            patch, covariance = moments_of(form)(images)
        weights = conv.weight.permute(0, 2, 3, 1).flatten(1)
        mean = weights @ patch
        variance = ((weights @ covariance) * weights).sum(1).clamp_min(0)
        _move_on(norm, mean.detach(), variance.detach(), len(images) * form.places)
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
