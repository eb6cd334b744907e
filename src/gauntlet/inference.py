"""Forward passes: ways that are shorter and give exactly the same values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from itertools import takewhile
from typing import TypeAlias

import torch
from torch import Tensor, nn

from gauntlet.network import Network
from gauntlet.precision import autocast

__all__ = ["as_it_is", "halved", "inference", "pooling_early", "standing_in"]

_Map: TypeAlias = Callable[[Tensor], Tensor]
"""What a layer does: a tensor to a tensor."""


@contextmanager
def inference(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inside, `network` (in eval mode) computes in `dtype` and remembers nothing for gradients.

    On a CPU its 2x2 pools that don't overlap are maxima of strided views, and come before the ReLU and the batch
    normalisation that they follow in a Sequential: max and a rising function of each value may change places, and the
    others then have a quarter of the values. Weights are brought to `dtype` once, where autocast does it for every
    batch. What has hooks, or is read as features, keeps its place.
    """
    with ExitStack() as ways:
        ways.enter_context(torch.inference_mode())
        ways.enter_context(autocast(device, dtype))
        if dtype != torch.float32:
            ways.enter_context(_weights_in(network, dtype))
        if all(parameter.device.type == "cpu" for parameter in network.parameters()):
            # A gradient would be shared by equal values, where torch's pooling gives it to the first.
            ways.enter_context(pooling_early(network, halved, as_it_is))
        yield


def halved(images: Tensor) -> Tensor:
    """[..., H, W] to [..., H // 2, W // 2]: the largest of each 2x2 values; an odd last row or column is left out."""
    height, width = images.shape[-2] // 2 * 2, images.shape[-1] // 2 * 2
    rows = torch.maximum(images[..., 0:height:2, :], images[..., 1:height:2, :])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


@contextmanager
def pooling_early(network: nn.Module, pool: _Map | None, rise: Callable[[nn.Module], _Map]) -> Iterator[None]:
    """Inside, plain 2x2 pools come before what only rises: batch normalisations that are in eval mode now, and ReLUs.

    pool: what stands for the pools' own work; None for that of torch. rise: what stands for a layer that is moved. Of a
    ReLU that no batch normalisation has gone with, hooks that come later get what it gives in its place. It may be
    entered inside itself.
    """
    moved: dict[nn.Module, _Map] = {}
    for layer, after in _movable(network).items():
        moved[layer] = _Pooled(pool or as_it_is(layer), tuple(map(rise, after)))
        relus = len(list(takewhile(lambda each: type(each) is nn.ReLU, after)))
        moved |= {each: _HandedOn(each, place < relus) for place, each in enumerate(after)}
    with standing_in(moved):
        yield


@contextmanager
def standing_in(forwards: Mapping[nn.Module, _Map]) -> Iterator[None]:
    """Inside, each of the modules works by what stands for its forward here. It may be entered inside itself."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        # An attribute of the instance stands before the method of its class.
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, earlier in before.items():
            if earlier is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = earlier


def as_it_is(layer: nn.Module) -> _Map:
    """The layer's own work, whatever stands for it meanwhile."""
    return partial(type(layer).forward, layer)


class _Pooled:
    """What stands for a pool's forward: its work, then that of the layers that have gone behind it."""

    def __init__(self, pool: _Map, after: Sequence[_Map]) -> None:
        self._pool, self._after = pool, after

    def __call__(self, images: Tensor) -> Tensor:
        return reduce(lambda maps, layer: layer(maps), self._after, self._pool(images))


class _HandedOn:
    """What stands for the forward of a layer that has gone behind a pool.

    again: whether the layer may also do its work in its place, for whoever has begun to listen to it.
    """

    def __init__(self, layer: nn.Module, again: bool) -> None:
        self._layer, self._again = layer, again

    def __call__(self, images: Tensor) -> Tensor:
        return as_it_is(self._layer)(images) if self._again and not _is_unread(self._layer) else images


def _movable(network: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    """Every plain pool with the layers that may go behind it."""
    pools = [module for module in network.modules() if type(module) is nn.MaxPool2d and _is_plain(module)]
    found: dict[nn.Module, list[nn.Module]] = {pool: [] for pool in pools}
    for sequence in [module for module in network.modules() if type(module) is nn.Sequential]:
        layers = list(sequence)
        for place, pool in enumerate(layers):
            before = _risers(layers[:place], network) if pool in found and layers.count(pool) == 1 else []
            # A module that stands in two places can't do nothing in one of them.
            if before and not any(_uses(network, layer) > 1 for layer in (*before, pool)):
                found[pool] = before
    return found


def _risers(before: list[nn.Module], network: nn.Module) -> list[nn.Module]:
    """The last of the layers, as far as they are ReLUs and batch normalisations that never fall."""
    found: list[nn.Module] = []
    for layer in reversed(before):
        if not (_is_free(layer, network) and _rises(layer)):
            break
        found.insert(0, layer)
    return found


def _is_free(layer: nn.Module, network: nn.Module) -> bool:
    """Whether nobody reads what the layer itself gives."""
    if isinstance(network, Network) and layer is network.body.get_submodule(network.feature_layer):
        return False
    return _is_unread(layer)


def _is_unread(layer: nn.Module) -> bool:
    return not (layer._forward_hooks or layer._forward_pre_hooks)


def _rises(layer: nn.Module) -> bool:
    if type(layer) is not nn.BatchNorm2d:
        return type(layer) is nn.ReLU
    fixed = not layer.training and layer.running_var is not None
    return fixed and (layer.weight is None or bool((layer.weight > 0).all()))


def _uses(network: nn.Module, layer: nn.Module) -> int:
    return sum(child is layer for module in network.modules() for child in module._modules.values())


def _is_plain(pool: nn.MaxPool2d) -> bool:
    sizes = [value if isinstance(value, tuple) else (value, value) for value in (pool.kernel_size, pool.stride)]
    alone = pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1))
    return sizes == [(2, 2), (2, 2)] and alone and not (pool.ceil_mode or pool.return_indices)


@contextmanager
def _weights_in(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Convolutions and linear layers hold their weights in `dtype`, in which autocast would multiply them anyway."""
    own = [module for module in network.modules() if type(module) in (nn.Conv2d, nn.Linear)]
    kept = [(module, dict(module._parameters)) for module in own]
    try:
        for module, parameters in kept:
            for name, value in parameters.items():
                if value is not None and value.dtype == torch.float32:
                    module._parameters[name] = nn.Parameter(value.detach().to(dtype), requires_grad=False)
        yield
    finally:
        for module, parameters in kept:
            module._parameters.update(parameters)
