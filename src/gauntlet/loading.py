"""Loading heavy libraries without the garbage collector looking through them again and again. Light to import."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["loading"]


@contextmanager
def loading(library: str) -> Iterator[None]:
    """Around what imports `library` for the first time in this process; does nothing once it is loaded.

    The collector rests meanwhile, and what is there afterwards it leaves alone for good: torch brings half a million
    objects that live as long as the process, which each full collection, and the end of Python, would walk through.
    """
    if library in sys.modules:
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        gc.freeze()
