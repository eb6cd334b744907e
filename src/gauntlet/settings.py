"""Settings of plug-ins: frozen-dataclass fields, checked by pydantic, printed by their repr."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gauntlet.errors import GauntletError, SettingError, nearest

__all__ = [
    "Count",
    "Fraction",
    "NonNegative",
    "Positive",
    "Probability",
    "Setting",
    "Size",
    "build",
    "changed",
    "check_types",
    "describe",
    "paths_in",
    "tag",
    "typed",
    "values",
]

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
"""A whole number from 1."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number from 0."""
Size = tuple[Annotated[int, Field(ge=1, le=1 << 14)], Annotated[int, Field(ge=1, le=1 << 14)]]
"""[height, width] of images, in pixels."""
Fraction = Annotated[float, Field(gt=0, le=1)]
"""A share in (0, 1]."""
Probability = Annotated[float, Field(ge=0, le=1)]
"""A share in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a plug-in, as `gauntlet list` shows it."""

    name: str
    default: str
    legal: str


@cache
def _adapter(cls: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast("type[Any]", cls))


def check_types(cls: type[Any], where: str) -> None:
    """Raise SettingError when the types of a plug-in's settings can't be found or can't be checked, or a default isn't
    legal.
    """
    try:
        hints = get_type_hints(cls, include_extras=True)
        for field in _fields(cls):
            if _is_mutable(hints[field.name]):
                raise SettingError(
                    f"{where}: the setting {field.name} of {cls.__name__} can be changed; write tuple[...]"
                )
        _adapter(cast("Hashable", cls))
        _check_defaults(cls, where)
    except NameError as error:
        raise SettingError(f"{where}: {error}, but {cls.__name__} uses it as a type; import it there") from None
    except PydanticUserError as error:
        problem = str(error).partition("\n")[0].partition(". ")[0]
        raise SettingError(f"{where}: a setting of {cls.__name__} has no type that TOML can write: {problem}") from None


def _check_defaults(cls: type[Any], where: str) -> None:
    given = {field.name: default for field in _fields(cls) if (default := _default(field)) is not dataclasses.MISSING}
    try:
        _adapter(cast("Hashable", cls)).validate_python(given)
    except ValidationError as error:
        for each in error.errors():
            # What has no default is missing; of all settings together, and of files, a suite may give others.
            if each["loc"] and each["type"] != "missing" and not each["type"].startswith("path_"):
                name = str(each["loc"][0])
                raise SettingError(
                    f"{where}: the setting {name} of {cls.__name__} has the default {given[name]!r}: {_problem(each)}"
                ) from None
    except GauntletError:
        return


def _default(field: dataclasses.Field[Any]) -> object:
    """MISSING where there is none, and where pydantic keeps it in a field of its own."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return dataclasses.MISSING if isinstance(field.default, FieldInfo) else field.default


def _problem(error: ErrorDetails) -> str:
    problem = error["msg"].removeprefix("Value error, ")
    return f"{problem[0].lower()}{problem[1:]}"


def _is_mutable(hint: object) -> bool:
    """Whether the type of a setting is a list, dict or set, or may be one: the engine remembers by settings."""
    if (get_origin(hint) or hint) in (list, dict, set):
        return True
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        inner = get_type_hints(hint, include_extras=True)
        return any(_is_mutable(inner[field.name]) for field in _fields(hint))
    return any(_is_mutable(part) for part in get_args(hint) if isinstance(part, type) or get_origin(part) is not None)


def _fields(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return _initial(cast("Hashable", cls))


@cache
def _initial(cls: Hashable) -> tuple[dataclasses.Field[Any], ...]:
    return tuple(field for field in dataclasses.fields(cast("type[Any]", cls)) if field.init)


def build(cls: type[T], settings: Mapping[str, object], who: str) -> T:
    """An instance of the dataclass `cls` with checked settings.

    Raises SettingError, naming `who`, the setting and the legal range.
    """
    known = [field.name for field in _fields(cls)]
    for name in settings:
        if name not in known:
            raise SettingError(f"{who}: {nearest(name, known, 'setting')}")
    try:
        instance: T = _adapter(cast("Hashable", cls)).validate_python(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing":
            raise SettingError(f"{who}: setting {_missing(cls, first['loc'])}") from None
        where = f"setting {_place(first['loc'])} = {first['input']!r}: " if first["loc"] else ""
        if first["type"] == "unexpected_keyword_argument":
            where = f"setting {_place(first['loc'][:-1])}: "
            raise SettingError(f"{who}: {where}unknown setting {first['loc'][-1]!r}") from None
        raise SettingError(f"{who}: {where}{_problem(first)}") from None
    for name, given in settings.items():
        if _taken_for_number(given, getattr(instance, name)):
            raise SettingError(f"{who}: setting {name} = {_short(given)}: true and false are no numbers; write one")
    return instance


def _missing(cls: type[Any], place: tuple[int | str, ...]) -> str:
    """`strength is missing; legal: number > 0`; of what lies inside a setting, the place alone."""
    *outer, name = place
    if outer:
        return f"{_place(tuple(outer))}.{name} is missing"
    legal = next(setting.legal for setting in describe(cls) if setting.name == name)
    return f"{name} is missing; legal: {legal}"


def typed(cls: type[Any], name: str, text: str) -> object:
    """A setting that was given as text: as it is where its type takes texts, else what TOML makes of it."""
    hint = get_type_hints(cls, include_extras=True).get(name, str)
    try:
        TypeAdapter(hint).validate_python(text)
    except ValidationError:
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return text
    return text


def _taken_for_number(given: object, taken: object) -> bool:
    """Whether true or false, also inside lists and tables, became 1 or 0, as pydantic has it."""
    if isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        return any(_taken_for_number(*pair) for pair in zip(given, taken, strict=False))
    if isinstance(given, Mapping) and _is_table(taken):
        return any(_taken_for_number(item, vars(taken).get(name)) for name, item in given.items())
    return isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool)


def _place(parts: tuple[int | str, ...]) -> str:
    """`triggers[0].target`, where pydantic also names the kind that it takes a table for."""
    name = str(parts[0])
    for before, part in itertools.pairwise(parts):
        if isinstance(part, int):
            name += f"[{part}]"
        elif not isinstance(before, int):
            name += f".{part}"
    return name


def values(instance: Any) -> dict[str, Any]:
    """The settings of an instance as plain JSON values; a dataclass among them is a table, its `kind` first."""
    return {field.name: _plain(getattr(instance, field.name)) for field in _fields(type(instance))}


def changed(instance: Any) -> dict[str, Any]:
    """The settings that differ from their defaults, also inside a dataclass among them, which keeps its `kind`."""
    fresh = _defaults(cast("Hashable", type(instance)))
    own = {name: value for name, value in values(instance).items() if value != fresh[name]}
    return {name: _pruned(getattr(instance, name), value) for name, value in own.items()}


def _pruned(setting: object, value: Any) -> Any:
    """The plain value of a setting, of the dataclasses in it only what differs from their defaults."""
    if isinstance(setting, tuple):
        return [_pruned(*pair) for pair in zip(setting, value, strict=True)]
    if not _is_table(setting):
        return value
    return ({"kind": value["kind"]} if "kind" in value else {}) | changed(setting)


def _is_table(setting: object) -> bool:
    return dataclasses.is_dataclass(setting) and not isinstance(setting, type)


@cache
def _defaults(cls: Hashable) -> dict[str, Any]:
    return {
        field.name: _plain(field.default if field.default_factory is dataclasses.MISSING else field.default_factory())
        for field in _fields(cast("type[Any]", cls))
    }


def paths_in(instance: Any) -> list[Path]:
    """The files and folders that the settings of an instance name, also inside tuples and nested dataclasses."""
    return [path for field in _fields(type(instance)) for path in _paths(getattr(instance, field.name))]


def _paths(value: object) -> list[Path]:
    if isinstance(value, Path):
        return [value]
    if isinstance(value, tuple):
        return [path for item in value for path in _paths(item)]
    return paths_in(value) if dataclasses.is_dataclass(value) else []


def tag(name: str, settings: Mapping[str, object]) -> str:
    """`badnets[patch=5,poison_ratio=0.01]`: how a plug-in with these settings is written in ids and tables."""
    if not settings:
        return name
    return f"{name}[{','.join(f'{key}={_short(value)}' for key, value in settings.items())}]"


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        if "kind" in value:
            inner = [f"{name}={_short(item)}" for name, item in value.items() if name != "kind"]
            return f"{value['kind']}({','.join(inner)})" if inner else str(value["kind"])
        return "+".join(f"{name}:{_short(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return "+".join(_short(item) for item in value)
    if isinstance(value, str):
        # Of a path the last part: an id is read on other machines too.
        return value.rstrip("/").rpartition("/")[2]
    return str(value).lower() if isinstance(value, bool) else str(value)


def describe(cls: type[Any]) -> list[Setting]:
    """Name, default and legal values of each setting of a plug-in."""
    schema = _adapter(cast("Hashable", cls)).json_schema()
    properties = schema.get("properties", {})
    hints = get_type_hints(cls)
    rows = []
    for field in _fields(cls):
        default = "" if field.default is dataclasses.MISSING else json.dumps(_plain(field.default))
        rows.append(Setting(field.name, default, _legal(properties.get(field.name, {}), hints[field.name])))
    return rows


def _legal(schema: Mapping[str, Any], hint: object) -> str:
    if "oneOf" in schema:
        return f"a table of kind {' | '.join(schema['discriminator']['mapping'])}"
    if "oneOf" in schema.get("items", {}):
        return f"one or several, each {_legal(schema['items'], hint)}"
    if "anyOf" in schema:
        return " | ".join(_legal(choice, hint) for choice in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(choice) for choice in schema["enum"])
    bounds = []
    for key, sign in (
        ("minimum", ">="),
        ("exclusiveMinimum", ">"),
        ("maximum", "<="),
        ("exclusiveMaximum", "<"),
    ):
        if key in schema:
            # Some versions of pydantic give whole bounds of floats as 0.0.
            bound = schema[key]
            bounds.append(f"{sign} {int(bound) if bound == int(bound) else bound}")
    kind = schema.get("type") or getattr(hint, "__name__", str(hint))
    return " ".join([str(kind), ", ".join(bounds)]).strip()


def _plain(value: object) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if type(value) in (list, tuple):
        return [_plain(item) for item in cast("list[object]", value)]
    if _is_table(value):
        inner = values(value)
        return ({"kind": inner["kind"]} if "kind" in inner else {}) | inner
    return json.loads(json.dumps(value, default=str))
