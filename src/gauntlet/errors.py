"""What can go wrong that a user can put right: each message is one sentence with the cause, the place, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn

__all__ = [
    "DataError",
    "DivergedError",
    "GauntletError",
    "LeakError",
    "MissingMethodError",
    "NotApplicableError",
    "SettingError",
    "ShapeError",
    "StoreError",
    "UnknownNameError",
    "WrittenError",
    "missing",
    "nearest",
]


class GauntletError(Exception):
    """Base of every error that is shown to the user as one line, without a traceback."""


class SettingError(GauntletError):
    """A setting outside its legal range, or two settings that contradict each other."""


class UnknownNameError(SettingError):
    """A name that no plug-in, suite or setting has."""


class DataError(GauntletError):
    """A data set that is absent, damaged or not of the declared form."""


class ShapeError(DataError):
    """Weights of another shape than the network's. layer: the module's path. found, due: (outputs, inputs, ...)."""

    def __init__(self, message: str, layer: str, found: tuple[int, ...], due: tuple[int, ...]) -> None:
        super().__init__(message)
        self.layer = layer
        self.found = found
        self.due = due


class StoreError(GauntletError):
    """The store can't be written, or an entry can't be trusted."""


class DivergedError(GauntletError):
    """A training whose loss became NaN, infinite or absurd."""


class LeakError(GauntletError):
    """An attack or a defense reached for data that only the evaluator may see."""


class WrittenError(GauntletError):
    """Somebody wrote into images that all cases share; whoever holds them must have them read anew."""


class NotApplicableError(Exception):
    """This defense says nothing about this attack; the message is the reason that the leaderboard shows."""


class MissingMethodError(GauntletError, NotImplementedError):
    """A class lacks a method that its base asks for."""


def missing(plugin: object, method: str) -> NoReturn:
    """Raise MissingMethodError for a plug-in that lacks the method that its base asks for.

    Bases call it inside `raise NotImplementedError(...)`, which it is, and by which linters know a stub.
    """
    cls = type(plugin)
    raise MissingMethodError(
        f"{cls.__module__.rpartition('.')[2]}: the class {cls.__qualname__} has no method {method}"
    )


def nearest(name: str, known: Iterable[str], what: str) -> UnknownNameError:
    """The error for an unknown name: lists the closest known ones, or all of them when none is close."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(choices) or 'none'}"
    return UnknownNameError(f"unknown {what} {name!r}; {hint}")
