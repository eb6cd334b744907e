"""Grids of settings: a list where a setting takes one value stands for several cases."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from gauntlet.errors import SettingError

__all__ = ["grid"]


def _depth(hint: object) -> int:
    """How many lists deep a value of this type is: 0 for a number, 1 for tuple[int, ...]."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _depth(arguments[0])
    if origin in (Union, types.UnionType):
        return max(_depth(argument) for argument in arguments)
    if origin in (tuple, list):
        return 1 + _depth(arguments[0])
    return 0


def _nesting(value: object) -> int:
    return 1 + max((_nesting(item) for item in value), default=0) if isinstance(value, list) else 0


def grid(cls: type[Any], settings: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """Every combination of the settings; a list is a grid where the setting's own type is not a list of that depth."""
    hints = get_type_hints(cls, include_extras=True)
    for name, value in settings.items():
        if value == [] and _depth(hints.get(name)) == 0:
            raise SettingError(f"{cls.__name__}: {name} = [] is a grid of no values; give at least one")
    choices = {
        name: value if isinstance(value, list) and _nesting(value) > _depth(hints.get(name)) else [value]
        for name, value in settings.items()
    }
    for combination in itertools.product(*choices.values()):
        yield dict(zip(choices, combination, strict=True))
