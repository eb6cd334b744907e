"""Grad-CAM: where in an image a network sees the class that it names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from gauntlet.images import Images, chunks
from gauntlet.network import Network
from gauntlet.precision import autocast

__all__ = ["cam_layer", "channel_weights", "distinct_maps", "salient", "tapped"]

_AT_ONCE = {"cpu": 128, "cuda": 1024}
"""Images a pass: on a CPU, what its caches hold."""
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)


def cam_layer(network: Network) -> nn.Module:
    """The module whose output Grad-CAM looks at; ValueError for a network that names no convolution.

    The activation function that follows the last convolution in the module that holds both; the holding block itself,
    as is usual with residual networks, where the block names none; else the convolution.
    """
    if network.last_conv is None:
        raise ValueError("a network without a convolution has no map for Grad-CAM")
    holder, _, name = network.last_conv.rpartition(".")
    parent = network.body.get_submodule(holder)
    names = [child for child, _ in parent.named_children()]
    behind = names[names.index(name) + 1 :]
    for child in behind:
        if isinstance(parent.get_submodule(child), _ACTIVATIONS):
            return parent.get_submodule(child)
        if isinstance(parent.get_submodule(child), nn.Linear | nn.Flatten | nn.Conv2d):
            break
    return parent if holder else parent.get_submodule(name)


@contextmanager
def tapped(layer: nn.Module, *, cut_off: bool = False) -> Iterator[list[Tensor]]:
    """Inside, the outputs of `layer` are collected, in the order of its calls.

    cut_off: the rest of the network then starts from a copy without history, so that a gradient for it costs what lies
    behind the layer and nothing else.
    """
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        found.append(output.detach().clone().requires_grad_() if cut_off else output)
        return found[-1]

    handle = layer.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def channel_weights(scores: Tensor, maps: Tensor, *, keep_graph: bool = False) -> Tensor:
    """float [N, C, 1, 1]: the mean gradient of each image's score over each channel of its maps [N, C, h, w].

    scores: [N], the logits of the classes looked at. Equation 1 of Selvaraju et al. 2017, arXiv:1610.02391. What is
    returned carries no graph.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), maps, retain_graph=keep_graph)
    return gradient.mean((2, 3), keepdim=True)


def distinct_maps(
    network: Network, images: Images, rivals: int, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Maps float32 [N, H, W] in [0, 1], an image's largest value being 1, and the predicted classes int64 [N].

    Selvaraju et al. 2017, arXiv:1610.02391, equation 2: ReLU of the channels' sum, each times the mean gradient of the
    predicted class's logit, at `cam_layer`. The mean of the maps of the `rivals` classes with the next highest logits
    is subtracted, each map with 1 as its largest value, and what is below 0 becomes 0: what every class looks at, the
    object, goes; what the predicted class alone looks at stays. The rest is brought to the images' size by bilinear
    interpolation. A map that is 0 everywhere stays so. The network should be in eval mode. dtype: see
    `gauntlet.precision`.
    """
    layer = cam_layer(network)
    maps, named = [], []
    for part in chunks(len(images), _AT_ONCE[images.device.type]):
        with _looked(network, layer, images[part], dtype) as (tap, logits):
            ranked = logits.detach().topk(min(1 + rivals, logits.shape[1]), dim=1).indices
            every = [_scaled(_raw(tap, logits, chosen)) for chosen in ranked.unbind(1)]
        others = torch.stack(every[1:]).mean(0) if len(every) > 1 else torch.zeros_like(every[0])
        maps.append(_enlarged(relu(every[0] - others), images))
        named.append(ranked[:, 0])
    return torch.cat(maps), torch.cat(named)


@contextmanager
def _looked(network: Network, layer: nn.Module, images: Images, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """The layer's maps of the images, cut off from what lies before them, and the logits."""
    batch = images.contiguous(memory_format=torch.channels_last)
    with torch.enable_grad(), tapped(layer, cut_off=True) as found:
        with autocast(images.device, dtype):
            logits = network(batch).float()
        yield found[-1], logits


def _raw(maps: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
    """float32 [N, 1, h, w], at least 0: the maps' sum for one class an image."""
    weights = channel_weights(logits.gather(1, classes[:, None])[:, 0], maps, keep_graph=True)
    return relu((weights * maps.detach()).float().sum(1, keepdim=True))


def _enlarged(raw: Tensor, images: Images) -> Tensor:
    """float32 [N, H, W] of maps [N, 1, h, w], scaled."""
    return _scaled(interpolate(raw, images.shape[2:], mode="bilinear", align_corners=False))[:, 0]


def _scaled(maps: Tensor) -> Tensor:
    """Maps [N, 1, h, w] with 1 as the largest value; a map that is 0 everywhere stays so."""
    peaks = maps.flatten(1).amax(1)[:, None, None, None]
    return torch.where(peaks > 0, maps / peaks.clamp(min=torch.finfo(torch.float32).tiny), maps)


def salient(maps: Tensor, share: float) -> Tensor:
    """bool [N, 1, H, W]: where a map [N, H, W] exceeds `share` of its largest value; nowhere in an empty map."""
    return (maps > share * maps.flatten(1).amax(1)[:, None, None])[:, None]
