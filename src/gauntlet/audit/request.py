"""What the user asks of an audit, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gauntlet.errors import SettingError

__all__ = ["Request", "Suspicion", "parse_setting", "parse_size", "parse_trigger"]


@dataclass(frozen=True)
class Suspicion:
    """A picture that the user suspects to be a trigger: pasted, with its transparency, with its upper left corner at
    column x and row y. target: the class that it should yield; None: the one that it sends most images to.
    """

    picture: Path
    x: int
    y: int
    target: int | None = None


@dataclass(frozen=True)
class Request:
    """An audit. clean: a file, a folder or NAME:PATH of a task. network: the architecture whose weights `model` holds,
    '' where the file describes it. classes: 0 where the model or the data say it. min_clean, max_asr: the gate that a
    repair must pass to be exported; min_clean None: at most five points below the model as it is. only: names of
    defenses, all of the suite's where empty. reserve: clean images for the defender, 0 for all that there are.
    resize: make images of another size fit the model. input_size: (height, width) that the model takes, for a file that
    doesn't say it. data_settings: of the task of clean images, as (name, value).
    """

    model: Path
    clean: str
    network: str = ""
    test: Path | None = None
    poisoned: tuple[Path, ...] = ()
    triggers: tuple[Suspicion, ...] = ()
    input_range: str = "0..1"
    classes: int = 0
    suite: str = "audit"
    only: tuple[str, ...] = ()
    reserve: int = 0
    min_clean: float | None = None
    max_asr: float = 0.1
    resize: bool = False
    input_size: tuple[int, int] | None = None
    data_settings: tuple[tuple[str, str], ...] = ()


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of `HEIGHTxWIDTH`. Raises SettingError for anything else."""
    height, _, width = text.partition("x")
    if not all(side.isascii() and side.isdecimal() and 1 <= int(side[:6]) <= 1 << 14 for side in (height, width)):
        raise SettingError(f"--input-size {text}: legal: HEIGHTxWIDTH in pixels, as in 55x47, each from 1 to {1 << 14}")
    return int(height), int(width)


def parse_setting(text: str) -> tuple[str, str]:
    """(name, value) of `NAME=VALUE`. Raises SettingError for anything else, and for what other options say."""
    name, equals, value = text.partition("=")
    taken = {"path": "--clean", "test": "--test", "classes": "--classes", "size": "--resize", "clean_only": "--clean"}
    if not (name and equals and value) or name in taken:
        hint = f"; {name} is said by {taken[name]}" if name in taken else ""
        raise SettingError(f"--data-setting {text}: legal: NAME=VALUE, as in value_range=0..1{hint}")
    return name, value


def parse_trigger(text: str) -> Suspicion:
    """`PATH@X,Y` or `PATH@X,Y:TARGET`. Raises SettingError for anything else."""
    path, at, rest = text.rpartition("@")
    place, colon, target = rest.partition(":")
    numbers = place.split(",")
    try:
        if not (path and at) or len(numbers) != 2:
            raise ValueError
        x, y = (int(number) for number in numbers)
        wanted = int(target) if colon else None
    except ValueError:
        raise SettingError(
            f"--trigger {text}: legal: PICTURE@X,Y or PICTURE@X,Y:TARGET, as in glasses.png@0,15:8, where X is the "
            "column and Y the row of the picture's upper left corner"
        ) from None
    if x < 0 or y < 0 or (wanted is not None and wanted < 0):
        raise SettingError(f"--trigger {text}: X, Y and TARGET are counted from 0")
    return Suspicion(Path(path), x, y, wanted)
