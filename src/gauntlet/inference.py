"""Forward passes without gradients: ways that are shorter on a CPU and give exactly the same values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from gauntlet.network import Network
from gauntlet.precision import autocast

__all__ = ["halved", "inference"]


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
            ways.enter_context(_pooling_early(network))
        yield


def halved(images: Tensor) -> Tensor:
    """[..., H, W] to [..., H // 2, W // 2]: the largest of each 2x2 values; an odd last row or column is left out."""
    height, width = images.shape[-2] // 2 * 2, images.shape[-1] // 2 * 2
    rows = torch.maximum(images[..., 0:height:2, :], images[..., 1:height:2, :])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


@contextmanager
def _pooling_early(network: nn.Module) -> Iterator[None]:
    """A gradient would be shared by equal values, where torch's pooling gives it to the first."""
    moved = _movable(network)
    for module, forward in moved.items():
        # An attribute of the instance stands before the method of its class.
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in moved:
            vars(module).pop("forward", None)


def _movable(network: nn.Module) -> dict[nn.Module, _Forward]:
    """What each module does instead: pools their own work and that of those before them, which do nothing."""
    pools = [module for module in network.modules() if type(module) is nn.MaxPool2d and _is_plain(module)]
    moved: dict[nn.Module, _Forward] = {pool: _Forward(()) for pool in pools}
    for sequence in [module for module in network.modules() if type(module) is nn.Sequential]:
        layers = list(sequence)
        for place, pool in enumerate(layers):
            before = _risers(layers[:place], network) if pool in moved and layers.count(pool) == 1 else []
            # A module that stands in two places can't do nothing in one of them.
            if before and not any(_uses(network, layer) > 1 for layer in (*before, pool)):
                moved |= dict.fromkeys(before, _Forward(None))
                moved[pool] = _Forward(tuple(before))
    return moved


class _Forward:
    """What stands for a module's forward. after: what to apply to the pooled maps; None: hand on the input."""

    def __init__(self, after: tuple[nn.Module, ...] | None) -> None:
        self._after = after

    def __call__(self, images: Tensor) -> Tensor:
        if self._after is None:
            return images
        found = halved(images)
        for layer in self._after:
            found = type(layer).forward(layer, found)
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
