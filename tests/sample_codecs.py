"""A codec for tests of the store whose values are no tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["JsonCodec"]


class JsonCodec:
    """A value of plain JSON."""

    def save(self, value: Any, folder: Path) -> None:
        (folder / "value.json").write_text(json.dumps(value), encoding="utf-8")

    def load(self, folder: Path) -> Any:
        return json.loads((folder / "value.json").read_text(encoding="utf-8"))
