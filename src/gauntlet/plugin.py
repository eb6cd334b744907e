"""The decorators that make a class a plug-in. They only mark and check it; `gauntlet.registry` collects."""

from __future__ import annotations

import difflib
from enum import StrEnum
from typing import Any, TypeVar

__all__ = ["Kind", "attack", "defense", "kind_of", "model", "name_of", "report", "task"]

C = TypeVar("C", bound=type[Any])


class Kind(StrEnum):
    """The kinds of plug-ins; the values are the names of their folders and entry-point groups."""

    TASK = "tasks"
    MODEL = "models"
    ATTACK = "attacks"
    DEFENSE = "defenses"
    REPORT = "reports"


_BASES = {
    Kind.TASK: ("gauntlet.task.TaskSource", "", ""),
    Kind.MODEL: ("gauntlet.architecture.Architecture", "", ""),
    Kind.ATTACK: (
        "gauntlet.attack.Attack",
        "family",
        "write family: ClassVar[Family] = Family.DIRTY_LABEL, or another",
    ),
    Kind.DEFENSE: ("gauntlet.defense.Defense", "stage", "derive the base of a stage, such as gauntlet.defense.Repair"),
    Kind.REPORT: ("gauntlet.report.Report", "filename", 'write filename: ClassVar[str] = "NAME.txt", or another'),
}
"""Each kind's base, what a class must have that the base only announces, and how to get it. By name: importing the
bases would load torch.
"""

_NEEDED = (
    ("gauntlet.task.TaskSource", ("load",)),
    ("gauntlet.architecture.Architecture", ("build",)),
    ("gauntlet.attack.Attack", ("mount",)),
    ("gauntlet.attack.Attack", ("backdoors",)),
    ("gauntlet.poisoning.Poisoning", ("trigger", "backdoors")),
    ("gauntlet.defense.Reference", ("rebuild",)),
    ("gauntlet.defense.Filter", ("keep",)),
    ("gauntlet.defense.InTraining", ("train",)),
    ("gauntlet.defense.Repair", ("repair",)),
    ("gauntlet.defense.Preprocessing", ("transform", "transform_levels")),
    ("gauntlet.defense.InputDetector", ("scorer",)),
    ("gauntlet.defense.ModelVerdict", ("inspect",)),
    ("gauntlet.defense.Aggregation", ("aggregate",)),
    ("gauntlet.report.Report", ("render",)),
)
"""What a class that derives such a base must have of its own, or of another base: one of these methods."""


def _mark(cls: C, kind: Kind) -> C:
    who = f"{cls.__module__}.{cls.__qualname__}"
    base, announced, remedy = _BASES[kind]
    if base not in {f"{each.__module__}.{each.__qualname__}" for each in cls.__mro__}:
        raise TypeError(f"{who} is marked @{kind.name.lower()} and must derive {base}")
    if announced and not any(announced in vars(each) for each in cls.__mro__):
        raise TypeError(f"{who} has no {announced}: {remedy}")
    # What a base was decorated with says nothing of the fields of this class.
    own = vars(cls).get("__dataclass_params__")
    if own is None or not own.frozen:
        raise TypeError(f"{who} must be a frozen dataclass: @dataclass(frozen=True), below @{kind.name.lower()}")
    if not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}("):
        raise TypeError(f"{who} needs a docstring with its source")
    _check_methods(cls, who)
    cls.plugin_kind = kind
    return cls


def _check_methods(cls: type[Any], who: str) -> None:
    bases = {f"{each.__module__}.{each.__qualname__}": each for each in cls.__mro__}
    for name, methods in _NEEDED:
        base = bases.get(name)
        if base is None or any(getattr(cls, method) is not getattr(base, method) for method in methods):
            continue
        new = [own for own, value in vars(cls).items() if callable(value) and not hasattr(base, own)]
        close = difflib.get_close_matches(methods[0], new, n=1)
        remedy = f"rename {close[0]}" if close else f"write it as {name} describes it"
        raise TypeError(f"{who} has no method {methods[0]}: {remedy}")


def task(cls: C) -> C:
    """Mark a `gauntlet.task.TaskSource` as a plug-in."""
    return _mark(cls, Kind.TASK)


def model(cls: C) -> C:
    """Mark a `gauntlet.architecture.Architecture` as a plug-in."""
    return _mark(cls, Kind.MODEL)


def attack(cls: C) -> C:
    """Mark a `gauntlet.attack.Attack` as a plug-in."""
    return _mark(cls, Kind.ATTACK)


def defense(cls: C) -> C:
    """Mark a `gauntlet.defense.Defense` as a plug-in."""
    return _mark(cls, Kind.DEFENSE)


def report(cls: C) -> C:
    """Mark a `gauntlet.report.Report` as a plug-in."""
    return _mark(cls, Kind.REPORT)


def kind_of(cls: type[Any]) -> Kind | None:
    """The kind of a marked class; None for a class that only inherits the mark."""
    kind = vars(cls).get("plugin_kind")
    return kind if isinstance(kind, Kind) else None


def name_of(plugin: object) -> str:
    """The public name of a plug-in, class or instance: its module's name."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return cls.__module__.rpartition(".")[2]
