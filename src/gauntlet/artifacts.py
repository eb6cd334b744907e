"""The codec for the store's usual values: named tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["TensorsCodec", "is_turned"]

_TENSORS = "tensors.safetensors"
_TURNED = "channels_last"
"""Metadata: the tensors that lie in the file as [N, H, W, C], as a JSON list."""


class TensorsCodec:
    """Named tensors of any device as one safetensors file.

    They come back on the CPU and memory-mapped; changing one in place leaves the file alone. A channels_last tensor
    comes back as one, any other contiguous: turning the weights of a network costs more than reading them.
    """

    def save(self, value: Mapping[str, Tensor], folder: Path) -> None:
        turned = [name for name, item in value.items() if is_turned(item)]
        tensors = {
            name: (item.permute(0, 2, 3, 1) if name in turned else item).detach().cpu() for name, item in value.items()
        }
        # safetensors refuses tensors that share memory or are not contiguous.
        apart = {name: item.clone(memory_format=torch.contiguous_format) for name, item in tensors.items()}
        metadata = {_TURNED: json.dumps(turned)} if turned else None
        try:
            save_file(apart, folder / _TENSORS, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    def load(self, folder: Path) -> dict[str, Tensor]:
        with safe_open(folder / _TENSORS, framework="pt") as file:
            turned = frozenset(json.loads((file.metadata() or {}).get(_TURNED, "[]")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
        return {name: item.permute(0, 3, 1, 2) if name in turned else item for name, item in tensors.items()}


def is_turned(item: Tensor) -> bool:
    """Whether the strides are those of channels_last, also where the sizes leave a choice: kernels go by them."""
    if item.ndim != 4:
        return False
    _, channels, height, width = item.shape
    return item.stride() == (height * width * channels, 1, width * channels, channels)
