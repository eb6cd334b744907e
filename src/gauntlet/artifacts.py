"""Codecs for the store's usual values: named tensors, and plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["JsonCodec", "TensorsCodec", "is_turned"]

_TENSORS = "tensors.safetensors"
_VALUE = "value.json"
_TURNED = "channels_last"
"""Metadata: the tensors that lie in the file as [N, H, W, C], as a JSON list."""


@dataclass(frozen=True)
class TensorsCodec:
    """Named tensors of any device as one safetensors file, with `metadata` in its header.

    They come back on the CPU and memory-mapped; changing one in place leaves the file alone. A channels_last tensor
    comes back as one, any other contiguous: turning the weights of a network costs more than reading them.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)

    def save(self, value: Mapping[str, Tensor], folder: Path) -> None:
        turned = [name for name, item in value.items() if is_turned(item)]
        tensors = {
            name: (item.permute(0, 2, 3, 1) if name in turned else item).detach().cpu() for name, item in value.items()
        }
        # safetensors refuses tensors that share memory or are not contiguous.
        apart = {name: item.clone(memory_format=torch.contiguous_format) for name, item in tensors.items()}
        metadata = dict(self.metadata) | ({_TURNED: json.dumps(turned)} if turned else {})
        try:
            save_file(apart, folder / _TENSORS, metadata=metadata or None)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    def load(self, folder: Path) -> dict[str, Tensor]:
        with safe_open(folder / _TENSORS, framework="pt") as file:
            turned = frozenset(json.loads((file.metadata() or {}).get(_TURNED, "[]")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
        return {name: item.permute(0, 3, 1, 2) if name in turned else item for name, item in tensors.items()}

    @staticmethod
    def metadata_in(folder: Path) -> dict[str, str]:
        """The metadata of a saved file."""
        with safe_open(folder / _TENSORS, framework="pt") as file:
            return {name: text for name, text in (file.metadata() or {}).items() if name != _TURNED}


def is_turned(item: Tensor) -> bool:
    """Whether the strides are those of channels_last, also where the sizes leave a choice: kernels go by them."""
    if item.ndim != 4:
        return False
    _, channels, height, width = item.shape
    return item.stride() == (height * width * channels, 1, width * channels, channels)


class JsonCodec:
    """A value of plain JSON: mappings with string names, lists, strings, numbers, booleans, None."""

    def save(self, value: Any, folder: Path) -> None:
        (folder / _VALUE).write_text(json.dumps(value), encoding="utf-8")

    def load(self, folder: Path) -> Any:
        return json.loads((folder / _VALUE).read_text(encoding="utf-8"))
