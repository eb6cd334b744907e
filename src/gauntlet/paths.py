"""Where suites, results of earlier runs and data sets lie when the user doesn't say."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["default_data", "default_store", "suite_folders"]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gauntlet"


def default_store() -> Path:
    """The store: $GAUNTLET_STORE, or else `gauntlet` in the user's cache folder."""
    chosen = os.environ.get("GAUNTLET_STORE")
    return Path(chosen) if chosen else _cache()


def default_data() -> Path:
    """Downloaded data sets: $GAUNTLET_DATA, or else `data` in gauntlet's cache folder."""
    chosen = os.environ.get("GAUNTLET_DATA")
    return Path(chosen) if chosen else _cache() / "data"


def suite_folders() -> list[Path]:
    """Where suites are looked for by name: Gauntlet's own (in a wheel, in a clone), then `bench` where the user is."""
    package = Path(__file__).parent
    return [package / "bench", package.parents[1] / "bench", Path.cwd() / "bench"]
