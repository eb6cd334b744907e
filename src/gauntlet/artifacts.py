"""Codecs for the store's usual values: named tensors, and plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["JsonCodec", "TensorsCodec"]

_TENSORS = "tensors.safetensors"
_VALUE = "value.json"


@dataclass(frozen=True)
class TensorsCodec:
    """Named tensors of any device as one safetensors file, with `metadata` in its header.

    They come back on the CPU, contiguous and memory-mapped; changing one in place leaves the file alone.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)

    def save(self, value: Mapping[str, Tensor], folder: Path) -> None:
        # safetensors refuses tensors that share memory or are not contiguous.
        tensors = {
            name: item.detach().cpu().clone(memory_format=torch.contiguous_format) for name, item in value.items()
        }
        try:
            save_file(tensors, folder / _TENSORS, metadata=dict(self.metadata) or None)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    def load(self, folder: Path) -> dict[str, Tensor]:
        return load_file(folder / _TENSORS)

    @staticmethod
    def metadata_in(folder: Path) -> dict[str, str]:
        """The metadata of a saved file."""
        with safe_open(folder / _TENSORS, framework="pt") as file:
            return dict(file.metadata() or {})


class JsonCodec:
    """A value of plain JSON: mappings with string names, lists, strings, numbers, booleans, None."""

    def save(self, value: Any, folder: Path) -> None:
        (folder / _VALUE).write_text(json.dumps(value), encoding="utf-8")

    def load(self, folder: Path) -> Any:
        return json.loads((folder / _VALUE).read_text(encoding="utf-8"))
