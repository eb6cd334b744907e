"""Suites: the TOML files that say which cases there are, what each must reach, and which are known to fail."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from gauntlet.errors import SettingError, nearest
from gauntlet.options import LARGEST_SEED, MOST_SEEDS
from gauntlet.records import Gate
from gauntlet.settings import tag

__all__ = [
    "Entry",
    "ExpectedFailure",
    "GateRule",
    "Part",
    "Subject",
    "Suite",
    "Thresholds",
    "find_suite",
    "read_suite",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Frozen):
    """A plug-in with settings, as a suite names it; a list where a setting takes one value is a grid."""

    name: str
    settings: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """The name with the settings as they stand there."""
        return tag(self.name, self.settings)


def _entry(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping):
        if not isinstance(value.get("name"), str):
            raise ValueError('a table needs a name, as in {name = "badnets", poison_ratio = 0.01}')
        return {"name": value["name"], "settings": {key: item for key, item in value.items() if key != "name"}}
    return value


Entries = Annotated[tuple[Annotated[Entry, BeforeValidator(_entry)], ...], Field(min_length=1)]
Seed = Annotated[StrictInt, Field(ge=0, le=LARGEST_SEED)]


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no shares; legal: 0 to 1")
    return value


Share = Annotated[float, BeforeValidator(_no_flag), Field(ge=0, le=1)]


@dataclass(frozen=True)
class Subject:
    """What a selector looks at. task, attack, architecture and defense: the names with and without their settings.

    stage: as `gauntlet list` shows it, and as a mark (`in training`, `in_training`).
    """

    id: str
    task: tuple[str, ...]
    architecture: tuple[str, ...]
    attack: tuple[str, ...]
    family: str
    defense: tuple[str, ...]
    stage: tuple[str, ...]


class Selector(_Frozen):
    """Globs over cases; `*` and `?` are wild, brackets are plain characters, a selector left out takes all.

    task, attack, architecture and defense compare with the name alone (`badnets` takes every setting of it) and with
    the name and its settings (`badnets[poison_ratio=0.01]`).
    """

    id: str | None = None
    task: str | None = None
    architecture: str | None = None
    attack: str | None = None
    family: str | None = None
    defense: str | None = None
    stage: str | None = None

    def matches(self, subject: Subject) -> bool:
        """Whether every selector that is given takes the subject."""
        return (
            _takes(self.id, subject.id)
            and _takes(self.task, *subject.task)
            and _takes(self.architecture, *subject.architecture)
            and _takes(self.attack, *subject.attack)
            and _takes(self.family, subject.family)
            and _takes(self.defense, *subject.defense)
            and _takes(self.stage, *subject.stage)
        )

    def described(self) -> str:
        """The selectors that are given, as the suite writes them."""
        given = self.model_dump(include=set(Selector.model_fields), exclude_none=True)
        return ", ".join(f'{name} = "{glob}"' for name, glob in given.items()) or "no selector"


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(re.escape(glob).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)


def _takes(glob: str | None, *names: str) -> bool:
    return glob is None or any(_pattern(glob).fullmatch(name) for name in names)


_SHARES = tuple(name for name in Gate.model_fields if name != "flagged")


class GateRule(Gate, Selector):
    """Thresholds for the cases that the selectors take; a later rule overrides an earlier one."""

    _no_flags = field_validator(*_SHARES, mode="before")(_no_flag)

    @model_validator(mode="after")
    def _asks_something(self) -> GateRule:
        if not self.thresholds():
            raise ValueError(f"the gate has no threshold; legal: at least one of {', '.join(Gate.model_fields)}")
        return self

    def thresholds(self) -> dict[str, float | bool]:
        """The thresholds that are given."""
        return self.model_dump(include=set(Gate.model_fields), exclude_none=True)


class ExpectedFailure(Selector):
    """Cases that are known to break their gate, and why."""

    reason: Annotated[str, Field(min_length=1)]


class Thresholds(_Frozen):
    """When an attack counts as failed, and a defended model as collapsed (`gauntlet.gates`)."""

    min_undefended_asr: Share = 0.5
    collapse: Share = 0.5


def _reserve(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError("legal: a whole number of images from 0, or a share of the training data below 1.0")
    if isinstance(value, float) and value >= 1:
        raise ValueError("a share must be below 1.0; write a number of images without a decimal point")
    return value


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed stands there twice, which would count the same result twice")
    return seeds


Reserve = Annotated[int | float, PlainValidator(_reserve)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MOST_SEEDS), AfterValidator(_distinct)]


class Part(_Frozen):
    """A further cross-product of a suite. What it leaves out is the suite's own; its recipe replaces the suite's."""

    seeds: Seeds | None = None
    tasks: Entries | None = None
    reserve: Reserve | None = None
    architectures: Entries | None = None
    attacks: Entries | None = None
    defenses: Entries | None = None
    recipe: dict[str, Any] | None = None


class Suite(_Frozen):
    """One suite. reserve: clean images of the defender, or a share of the attacker's training data."""

    name: str
    description: str = ""
    seeds: Seeds = (0, 1, 2)
    tasks: Entries
    reserve: Reserve = 100
    architectures: Entries
    attacks: Entries
    defenses: Entries
    recipe: dict[str, Any] = {}
    recipe_for: dict[str, dict[str, Any]] = {}
    thresholds: Thresholds = Thresholds()
    gate: tuple[GateRule, ...] = ()
    expected_failure: tuple[ExpectedFailure, ...] = ()
    part: tuple[Part, ...] = ()
    file: Path

    @property
    def blocks(self) -> tuple[Suite, ...]:
        """The suite's cross-products, each as a suite of its own: its own lists, then each part's."""
        first = self.model_copy(update={"part": ()})
        said = [{name: value for name, value in part if value is not None} for part in self.part]
        return (first, *(first.model_copy(update=fields) for fields in said))


_TABLES: dict[str, type[BaseModel]] = {
    "gate": GateRule,
    "expected_failure": ExpectedFailure,
    "thresholds": Thresholds,
    "part": Part,
}


def read_suite(file: Path) -> Suite:
    """The suite in `file`. Raises SettingError that names the file, the key and what is legal there."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"suite {file} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingError(f"suite {file} is no valid TOML: {error}") from None
    if "file" in content:
        raise SettingError(f"{file}: {nearest('file', _legal_keys(Suite), 'key')}")
    try:
        return Suite.model_validate({"name": file.stem, **content, "file": file})
    except ValidationError as error:
        raise SettingError(f"{file}: {_sentence(error)}") from None


_WORDS = {
    "tuple_type": "legal: a list, in brackets",
    "too_short": "the list must not be empty",
    "model_type": 'legal: a name in quotes, or a table with a name, as in {name = "badnets", patch = 5}',
    "dict_type": "legal: a table",
}
"""Pydantic speaks of Python's types, the user writes TOML."""


def _sentence(error: ValidationError) -> str:
    # A misspelt key is missing under its own name too: the misspelling is what helps.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    where = [part for part in first["loc"] if isinstance(part, str) and not part.startswith("constrained")]
    if first["type"] == "extra_forbidden":
        model = _TABLES.get(where[0], Suite) if len(where) > 1 else Suite
        unknown = nearest(where[-1], _legal_keys(model), "key")
        return f"[{where[0]}]: {unknown}" if len(where) > 1 else str(unknown)
    place = ".".join(str(part) for part in first["loc"][: 3 if len(where) > 1 else 2])
    if first["type"] == "missing":
        return f"the key {place} is missing"
    if first["type"] == "too_long":
        return f"{place}: the list has more than {first['ctx']['max_length']:,} entries"
    if first["type"] == "tuple_type" and place in _TABLES:
        return f"[{place}] must be [[{place}]], in double brackets: there may be several"
    if first["type"] in _WORDS:
        return f"{place} = {first['input']!r}: {_WORDS[first['type']]}"
    problem = first["msg"].removeprefix("Value error, ")
    return f"{place} = {first['input']!r}: {problem[0].lower()}{problem[1:]}"


def _legal_keys(model: type[BaseModel]) -> list[str]:
    return [name for name in model.model_fields if name != "file"]


def find_suite(name: str, folders: Iterable[Path]) -> Path:
    """The file of a suite: a path that ends in .toml, or the name of a TOML file in one of `folders`.

    Raises UnknownNameError with the nearest names.
    """
    if name.endswith(".toml"):
        file = Path(name)
        if not file.is_file():
            raise SettingError(f"suite {name} does not exist; give a name or the path of a .toml file")
        return file
    known = {file.stem: file for folder in folders for file in sorted(folder.glob("*.toml"))}
    if name not in known:
        raise nearest(name, known, "suite")
    return known[name]
