"""The wall between the three views: test data is sealed, and opening it as attacker or defender raises (trap T3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from gauntlet.errors import LeakError

__all__ = ["Role", "Sealed", "acting_as", "forbid_players"]

T = TypeVar("T")


class Role(StrEnum):
    """On whose behalf code runs."""

    ENGINE = "engine"
    ATTACKER = "attacker"
    DEFENDER = "defender"


@dataclass
class _Turn:
    """Whose turn it is in this process; a thread that a player starts has its role too, which a ContextVar lacks."""

    role: Role = Role.ENGINE


_turn = _Turn()


@contextmanager
def acting_as(role: Role) -> Iterator[None]:
    """Run the block on behalf of `role`."""
    before = _turn.role
    _turn.role = role
    try:
        yield
    finally:
        _turn.role = before


def forbid_players(what: str) -> None:
    """Raise LeakError when an attack or a defense runs: `what` is the evaluator's alone."""
    if _turn.role is not Role.ENGINE:
        raise LeakError(f"the {_turn.role} reached for {what}, which only the evaluator may see")


@dataclass(frozen=True)
class Sealed(Generic[T]):
    """A value that opens for the evaluator only."""

    what: str
    _value: T = field(repr=False)

    def open(self) -> T:
        """The value; LeakError when an attack or a defense is running."""
        forbid_players(self.what)
        return self._value
