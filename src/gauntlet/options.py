"""The options that `pytest bench` and `gauntlet plan` share. Light: importing this loads neither torch nor pydantic."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gauntlet.errors import SettingError
from gauntlet.paths import default_data, default_store

__all__ = [
    "LARGEST_SEED",
    "MOST_SEEDS",
    "OPTIONS",
    "Option",
    "Options",
    "options_from",
    "parse_duration",
    "parse_seeds",
]

LARGEST_SEED = 2**63 - 1
"""Predictions keep seeds as int64."""
MOST_SEEDS = 1000
"""Of a case: each trains a victim of its own."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Option:
    """One option as argparse and pytest both take it. run_only: it means nothing to `gauntlet plan`."""

    flag: str
    help: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    run_only: bool = False

    @property
    def dest(self) -> str:
        """Its name in the namespace; the prefix keeps clear of other plug-ins' options."""
        return f"gauntlet_{self.flag.removeprefix('--').replace('-', '_')}"

    @property
    def default(self) -> Any:
        """What it is when the user doesn't give it."""
        return self.settings["default"]

    def add_to(self, add: Callable[..., object]) -> None:
        """Register it with `add`: ArgumentParser.add_argument or pytest's addoption."""
        add(self.flag, dest=self.dest, help=self.help, **self.settings)


_MANY: Mapping[str, Any] = {"action": "append", "default": [], "metavar": "NAME"}
_SWITCH: Mapping[str, Any] = {"action": "store_true", "default": False}

OPTIONS = (
    Option("--suite", "suite to run: a name or a .toml file; repeat it or separate by commas (quick)", _MANY),
    Option("--task", "run the suite on these tasks instead: digits, mnist, parquet:PATH, folder:PATH, ...", _MANY),
    Option("--device", "auto, cpu, cuda or cuda:N (auto)", {"default": "auto", "metavar": "DEVICE"}),
    Option("--seeds", "how many seeds (5 means 0 to 4) or which (0,7)", {"default": "", "metavar": "SEEDS"}),
    Option("--store", "folder that keeps what was made ($GAUNTLET_STORE)", {"default": "", "metavar": "DIR"}),
    Option("--results", "folder for records and leaderboards (results)", {"default": "", "metavar": "DIR"}, True),
    Option("--tensorboard", "folder for the curves of every training", {"default": "", "metavar": "DIR"}, True),
    Option("--data-dir", "folder of the data sets ($GAUNTLET_DATA)", {"default": "", "metavar": "DIR"}),
    Option("--offline", "never download anything", _SWITCH),
    Option("--budget", "run what is most useful within 90s, 20m or 2h", {"default": "", "metavar": "TIME"}),
    Option("--plan", "print the cases, what is cached and what they will cost; run nothing", _SWITCH, True),
    Option("--recompute", "make everything anew, whatever the store holds", _SWITCH),
    Option("--strict-gates", "marginal cases and failed attacks fail too", _SWITCH, True),
    Option("--compile", "compile the networks with torch.compile", _SWITCH),
    Option("--plugin", "load plug-ins from this Python file; may be repeated", {**_MANY, "metavar": "FILE"}),
)


@dataclass(frozen=True)
class Options:
    """What the user asked for. budget: seconds, None without one. seeds, tasks: empty for the suite's own."""

    suites: tuple[str, ...] = ("quick",)
    tasks: tuple[str, ...] = ()
    device: str = "auto"
    seeds: tuple[int, ...] = ()
    store: Path = field(default_factory=default_store)
    results: Path = Path("results")
    data_dir: Path = field(default_factory=default_data)
    offline: bool = False
    budget: float | None = None
    plan: bool = False
    recompute: bool = False
    strict_gates: bool = False
    compile: bool = False
    plugins: tuple[Path, ...] = ()
    tensorboard: Path | None = None


def options_from(value: Callable[[str], Any]) -> Options:
    """The options, given how to look up one value by its `dest`.

    Raises SettingError for seeds and durations that can't be read.
    """
    found = {option.dest.removeprefix("gauntlet_"): value(option.dest) for option in OPTIONS}
    return Options(
        suites=_names(found["suite"]) or ("quick",),
        tasks=_names(found["task"]),
        device=found["device"] or "auto",
        seeds=parse_seeds(found["seeds"]) if found["seeds"] else (),
        store=Path(found["store"]).expanduser() if found["store"] else default_store(),
        results=Path(found["results"] or "results").expanduser(),
        data_dir=Path(found["data_dir"]).expanduser() if found["data_dir"] else default_data(),
        offline=bool(found["offline"]),
        budget=parse_duration(found["budget"]) if found["budget"] else None,
        plan=bool(found["plan"]),
        recompute=bool(found["recompute"]),
        strict_gates=bool(found["strict_gates"]),
        compile=bool(found["compile"]),
        tensorboard=Path(found["tensorboard"]).expanduser() if found["tensorboard"] else None,
        plugins=tuple(Path(name).expanduser() for name in found["plugin"] or ()),
    )


def _names(values: Iterable[str] | None) -> tuple[str, ...]:
    # A comma inside brackets belongs to a task's settings.
    parts = [part.strip() for value in values or () for part in re.split(r",(?![^\[\]]*\])", value)]
    return tuple(dict.fromkeys(part for part in parts if part))


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `20m`, `1.5h` or `1h30m`. Raises SettingError for anything else, and for nothing at all."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = math.fsum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.replace(" ", "") or not seconds:
        raise SettingError(f"{text!r} is no duration; legal: a number with s, m or h, as in 90s, 20m or 1h30m")
    return seconds


def parse_seeds(text: str) -> tuple[int, ...]:
    """`5` means seeds 0 to 4, `0,7` (or `7,`) those seeds. Raises SettingError for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and part.isascii() for part in parts):
        raise SettingError(f"--seeds {text}: legal: a count from 1, as in 5, or a list of whole numbers, as in 0,7")
    # Twenty digits are too many already, and of thousands int() makes no number.
    numbers = [int(part.lstrip("0")[:20] or "0") for part in parts]
    if "," in text:
        if max(numbers) > LARGEST_SEED or len(numbers) > MOST_SEEDS:
            raise SettingError(
                f"--seeds {text}: legal: at most {MOST_SEEDS:,} seeds, each a whole number from 0 to {LARGEST_SEED}"
            )
        if len(set(numbers)) < len(numbers):
            raise SettingError(f"--seeds {text}: a seed stands there twice, which would count the same result twice")
        return tuple(numbers)
    if not 1 <= numbers[0] <= MOST_SEEDS:
        raise SettingError(f"--seeds {text}: legal: a count from 1 to {MOST_SEEDS:,}, or a list such as 0,7")
    return tuple(range(numbers[0]))
