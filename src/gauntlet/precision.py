"""Which arithmetic a training runs in, chosen from the device and the network, never from a stopwatch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gauntlet.network import Network
from gauntlet.recipe import Recipe

__all__ = ["arithmetic", "autocast", "describe_precision", "flops_per_image", "has_fast_bf16", "resolve"]

WORTH_BF16 = 1e6
"""Forward FLOPs an image from which bf16 autocast beat fp32 on the machines measured (docs/benchmarks.md)."""


def flops_per_image(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Floating-point operations of one forward pass of one image; of a Network and its copies counted once."""
    known = network.structure.flops if isinstance(network, Network) else {}
    if shape not in known:
        known[shape] = _counted(network, shape)
    return known[shape]


def _counted(network: nn.Module, shape: tuple[int, int, int]) -> float:
    parameter = next(network.parameters())
    counter = FlopCounterMode(display=False)
    was_training = network.training
    network.eval()
    with torch.no_grad(), counter:
        network(torch.zeros(1, *shape, device=parameter.device))
    network.train(was_training)
    return float(counter.get_total_flops())


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.backends.cpu.get_cpu_capability()
    return capabilities.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())


def arithmetic(recipe: Recipe, device: torch.device) -> str:
    """What decides, beside the network, which arithmetic `resolve` chooses: as part of a key, since machines differ."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16 where it pays" if has_fast_bf16(device) else "fp32"


def describe_precision(device: torch.device) -> str:
    """What `auto` means on this device: `bf16 from 1 MFLOP an image` or why it is fp32."""
    if has_fast_bf16(device):
        return f"bf16 from {WORTH_BF16 / 1e6:g} MFLOP an image"
    return "fp32: this device multiplies no bf16 fast"


def resolve(recipe: Recipe, network: nn.Module, shape: tuple[int, int, int], device: torch.device) -> torch.dtype:
    """torch.bfloat16 or torch.float32 for this recipe, network and device."""
    if recipe.precision == "auto":
        pays = has_fast_bf16(device) and _is_worth_bf16(network, shape)
        return torch.bfloat16 if pays else torch.float32
    return torch.bfloat16 if recipe.precision == "bf16" else torch.float32


def _is_worth_bf16(network: nn.Module, shape: tuple[int, int, int]) -> bool:
    """By the weights alone where they settle it, since each is multiplied once at least; else by a forward pass."""
    weights = sum(parameter.numel() for parameter in network.parameters() if parameter.ndim > 1)
    return 2 * weights >= WORTH_BF16 or flops_per_image(network, shape) >= WORTH_BF16


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """The context in which forward passes run; float32 needs none."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
