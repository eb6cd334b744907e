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

__all__ = ["cam_layer", "channel_weights", "grad_cam", "salient", "tapped"]

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


def grad_cam(
    network: Network, images: Images, classes: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Maps float32 [N, H, W] in [0, 1], the largest value of an image's map being 1, and the classes int64 [N].

    Selvaraju et al. 2017, arXiv:1610.02391, equation 2: ReLU of the channels' sum, each times the mean gradient of the
    class's logit, at `cam_layer`; brought to the images' size by bilinear interpolation. Without `classes` each image's
    predicted one is looked at. A map that is 0 everywhere stays so. The network should be in eval mode. dtype: see
    `gauntlet.precision`.
    """
    layer = cam_layer(network)
    maps, named = [], []
    for part in chunks(len(images), _AT_ONCE[images.device.type]):
        batch = images[part].contiguous(memory_format=torch.channels_last)
        with torch.enable_grad(), tapped(layer, cut_off=True) as found:
            with autocast(images.device, dtype):
                logits = network(batch).float()
            chosen = logits.argmax(1) if classes is None else classes[part]
            weights = channel_weights(logits.gather(1, chosen[:, None])[:, 0], found[-1])
        raw = relu((weights * found[-1].detach()).float().sum(1, keepdim=True))
        large = interpolate(raw, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        peaks = large.flatten(1).amax(1)[:, None, None]
        maps.append(torch.where(peaks > 0, large / peaks.clamp(min=torch.finfo(torch.float32).tiny), large))
        named.append(chosen)
    return torch.cat(maps), torch.cat(named)


def salient(maps: Tensor, share: float) -> Tensor:
    """bool [N, 1, H, W]: where a map [N, H, W] exceeds `share` of its largest value; nowhere in an empty map."""
    return (maps > share * maps.flatten(1).amax(1)[:, None, None])[:, None]
