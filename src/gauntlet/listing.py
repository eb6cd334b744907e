"""What `gauntlet list` shows: every plug-in with its family or stage, its summary and its settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Any

from tabulate import tabulate

from gauntlet.defense import Defense, reserve_in_words
from gauntlet.paths import suite_folders
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.settings import Setting, describe
from gauntlet.suite import read_suite

__all__ = ["SUITES", "Entry", "as_json", "as_text", "entries", "listing"]

SUITES = "suites"
"""Suites are listed beside the kinds of plug-ins; they are TOML files."""
RESERVE = "clean reserve"

_GROUPS: Mapping[Kind, tuple[str, Callable[[type[Any]], str]]] = {
    Kind.TASK: ("write it as", lambda cls: "NAME:PATH" if "path" in _fields(cls) else "NAME"),
    Kind.MODEL: ("features", lambda cls: str(cls.feature_layer)),
    Kind.ATTACK: ("family", lambda cls: str(cls.family)),
    Kind.DEFENSE: ("stage", lambda cls: str(cls.stage)),
    Kind.REPORT: ("file", lambda cls: str(cls.filename)),
}


@dataclass(frozen=True)
class Entry:
    """One plug-in or suite. group: its family, stage, file... named by `heading`. reserve: of a defense, the clean
    reserves that it works with.
    """

    name: str
    heading: str
    group: str
    summary: str
    settings: tuple[Setting, ...] = ()
    reserve: str = ""

    @property
    def facts(self) -> dict[str, str]:
        """What stands beside the summary, by heading."""
        return {self.heading: self.group} | ({RESERVE: self.reserve} if self.reserve else {})


def entries(kind: str, registry: Registry) -> list[Entry]:
    """All plug-ins of a kind (a value of `Kind`), or all suites, by name."""
    if kind == SUITES:
        return _suites()
    heading, group = _GROUPS[Kind(kind)]
    return [
        Entry(
            name,
            heading,
            group(cls).replace("NAME", name),
            _summary(cls),
            tuple(describe(cls)),
            _reserve(cls) if kind == Kind.DEFENSE else "",
        )
        for name, cls in registry.classes(Kind(kind)).items()
    ]


def listing(kinds: Sequence[str], registry: Registry, *, json: bool, settings: bool) -> str:
    """The whole output of `gauntlet list` for these kinds."""
    found = {kind: entries(kind, registry) for kind in kinds}
    if json:
        return dumps({kind: as_json(listed) for kind, listed in found.items()}, indent=2) + "\n"
    return "\n".join(as_text(kind, listed, settings=settings) for kind, listed in found.items())


def as_text(kind: str, listed: Sequence[Entry], *, settings: bool) -> str:
    """A table, or with settings one paragraph per plug-in."""
    if not listed:
        return f"{kind}: none\n"
    if settings:
        return f"{kind}\n\n" + "\n".join(_paragraph(entry) for entry in listed)
    rows = [(entry.name, *entry.facts.values(), entry.summary) for entry in listed]
    headers = (kind, *listed[0].facts, "summary")
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True) + "\n"


def as_json(listed: Sequence[Entry]) -> list[dict[str, Any]]:
    """Plain values for `--json`."""
    return [
        {
            "name": entry.name,
            **entry.facts,
            "summary": entry.summary,
            "settings": [asdict(setting) for setting in entry.settings],
        }
        for entry in listed
    ]


def _paragraph(entry: Entry) -> str:
    facts = ", ".join(f"{heading}: {fact}" for heading, fact in entry.facts.items())
    lines = [f"{entry.name}  ({facts})", f"  {entry.summary}"]
    rows = [(f"    {setting.name}", setting.default or "required", setting.legal) for setting in entry.settings]
    if rows:
        lines.append(tabulate(rows, tablefmt="plain", disable_numparse=True, preserve_whitespace=True))
    return "\n".join(lines) + "\n"


def _suites() -> list[Entry]:
    files: dict[str, Path] = {file.stem: file for folder in suite_folders() for file in sorted(folder.glob("*.toml"))}
    found = []
    for name, file in sorted(files.items()):
        suite = read_suite(file)
        tasks = " ".join(dict.fromkeys(task.text for block in suite.blocks for task in block.tasks))
        found.append(Entry(name, "tasks", tasks, " ".join(suite.description.split())))
    return found


def _fields(cls: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls) if field.init}


def _reserve(cls: type[Defense]) -> str:
    """With the default settings."""
    if all(setting.default for setting in describe(cls)):
        return reserve_in_words(cls())
    return "by its settings"


def _summary(cls: type[Any]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]
