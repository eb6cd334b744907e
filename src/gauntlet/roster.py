"""The roster: ids, marks and groups of the cases of a session, which is all that pytest needs to collect them.

It is kept from one run to the next (`gauntlet.recall`), so that collecting loads no torch; the cases themselves are
made when the first of them runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gauntlet.errors import SettingError
from gauntlet.options import Options
from gauntlet.paths import suite_folders
from gauntlet.recall import code_state, recalled
from gauntlet.suite import find_suite

if TYPE_CHECKING:
    from gauntlet.session import Session

__all__ = ["Roster", "parameters", "roster"]


@dataclass(frozen=True)
class Row:
    """One case. group: what the cases of one victim have in common."""

    id: str
    marks: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Roster:
    """rows: in the order in which they run. meanings: of every mark. warnings: suites' rules that match no case."""

    rows: tuple[Row, ...]
    meanings: Mapping[str, str]
    warnings: tuple[str, ...] = field(default=())

    @cached_property
    def groups(self) -> dict[str, str]:
        """The group of each case by its id."""
        return {row.id: row.group for row in self.rows}


def roster(options: Options, session: Callable[[], Session]) -> Roster:
    """The kept roster of the chosen suites, or that of `session`. Raises GauntletError."""
    question = {
        "what": "roster",
        "suites": [_content(find_suite(name, suite_folders())) for name in options.suites],
        "tasks": options.tasks,
        "seeds": options.seeds,
        "compile": options.compile,
        "data": [str(options.data_dir), options.offline, str(Path.cwd())],
        "code": code_state(options.plugins),
    }
    kept = recalled(options.store, question, lambda: asdict(_from(session())))
    rows = (Row(row["id"], tuple(row["marks"]), row["group"]) for row in kept["rows"])
    return Roster(tuple(rows), kept["meanings"], tuple(kept["warnings"]))


def _content(file: Path) -> list[str]:
    try:
        return [str(file), hashlib.sha256(file.read_bytes()).hexdigest()]
    except OSError as error:
        raise SettingError(f"suite {file} can't be read: {error.strerror}") from None


def _from(session: Session) -> Roster:
    from gauntlet.marks import group_of, marks_of

    found = [(case, marks_of(case)) for case in session.cases]
    rows = tuple(Row(case.id, tuple(marks), group_of(case)) for case, marks in found)
    return Roster(rows, {name: what for _, marks in found for name, what in marks.items()}, session.warnings)


def parameters(listed: Roster, config: pytest.Config) -> list[Any]:
    """One parameter a case: its id. Cases that share a victim share an xdist group."""
    for name, meaning in {**listed.meanings, "xdist_group": "cases that share a victim"}.items():
        config.addinivalue_line("markers", f"{name}: {meaning} (gauntlet)")
    made = {name: getattr(pytest.mark, name) for name in listed.meanings}
    together = _together(listed.rows)
    return [
        pytest.param(row.id, id=row.id, marks=[*(made[name] for name in row.marks), together[row.group]])
        for row in listed.rows
    ]


def _together(rows: Iterable[Row]) -> dict[str, pytest.MarkDecorator]:
    groups: Sequence[str] = list(dict.fromkeys(row.group for row in rows))
    return {group: pytest.mark.xdist_group(group) for group in groups}
