"""The line below pytest's own output that says what is going on, on interactive terminals."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TextIO

__all__ = ["LiveLine", "open_terminal"]

_TERMINAL = Path("/dev/tty")
_PAUSE = 0.2
"""Seconds between two updates within a step: more often is not legible."""
_NARROW = 79
"""Columns taken where the terminal doesn't tell its own: a line that wraps can't be taken back."""


def open_terminal() -> TextIO | None:
    """The terminal itself, which no capture stands before; None where there is none."""
    try:
        return _TERMINAL.open("w", encoding="utf-8", errors="replace")
    except OSError:
        return None


class LiveLine:
    """A `gauntlet.progress.Progress` that rewrites one line and leaves the cursor where pytest's output goes on."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._text = ""
        self._last = 0.0

    def step(self, text: str) -> None:
        """A step begins."""
        self._text = text
        self._show(text)

    def epoch(self, done: float, total: float, loss: float, rate: float) -> None:
        """Epochs done of total, mean loss, images a second."""
        if time.monotonic() - self._last >= _PAUSE:
            self._show(f"{self._text}: epoch {done:g} of {total:g}, loss {loss:.3f}, {rate:,.0f} images/s")

    def clear(self) -> None:
        """Remove the line."""
        self._show("")

    def _show(self, text: str) -> None:
        self._last = time.monotonic()
        try:
            width = os.get_terminal_size(self._terminal.fileno()).columns - 1
        except OSError:
            width = _NARROW
        # Down and up again makes room below at the screen's edge; then save, write below, restore.
        self._terminal.write(f"\x1bD\x1bM\x1b7\x1b[1B\r\x1b[2K{text[:width]}\x1b8")
        self._terminal.flush()
