"""What the store makes right now, for those who work on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

__all__ = ["Making", "being_made", "making"]


@dataclass(eq=False)
class Making:
    """One value in the making. kind, key: its entry. trainings: how many of its trainings have begun.

    earlier: seconds that interrupted attempts had put into what this one took over. afterwards: called when the value
    has been made; not when making it failed.
    """

    kind: str
    key: str
    trainings: int = 0
    earlier: float = 0.0
    afterwards: list[Callable[[], None]] = field(default_factory=list)


_now: ContextVar[Making | None] = ContextVar("in the making", default=None)


@contextmanager
def making(kind: str, key: str) -> Iterator[Making]:
    """The block makes the value of that entry; values that it obtains on the way have blocks of their own."""
    work = Making(kind, key)
    token = _now.set(work)
    try:
        yield work
    finally:
        _now.reset(token)


def being_made() -> Making | None:
    """The innermost value that is being made here; None outside the store."""
    return _now.get()
