"""Keys: the SHA-256 of a canonical JSON text, so that equal specifications have equal keys on every machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from gauntlet.errors import SettingError

__all__ = ["canonical", "key"]


def canonical(value: object) -> str:
    """The one JSON text of `value`: sorted names, no spaces, ASCII.

    Takes mappings with string names, lists, tuples (as lists), strings, whole and real numbers, booleans and None;
    1 and 1.0 are different. Raises SettingError for NaN and infinity, TypeError for anything else: a repr or a memory
    address inside a key would make it change, or stay, by accident.
    """
    plain = _plain(value, "value")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key(spec: Mapping[str, object]) -> str:
    """The SHA-256 of the canonical text of `spec`: 64 hex characters."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()


def _plain(value: object, where: str) -> Any:
    if isinstance(value, Mapping):
        return {_name(name, where): _plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"{where} = {value} can't stand in a key; legal: any finite number")
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{where}: {type(value).__name__} can't stand in a key; give a plain JSON value")


def _name(name: object, where: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{where}: the name {name!r} is no string")
    return name
