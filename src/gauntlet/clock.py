"""How long the command has been at work. Imported first of all, so that loading the rest counts."""

from __future__ import annotations

import time

__all__ = ["age"]

_BEGUN = time.perf_counter()


def age() -> float:
    """Seconds since the command began: what a run takes before its first case."""
    return time.perf_counter() - _BEGUN
