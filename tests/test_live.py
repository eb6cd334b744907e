from __future__ import annotations

import io
import os
import re

import pytest

from gauntlet.live import LiveLine

FRAME = re.compile("\x1bD\x1bM\x1b7\x1b\\[1B\r\x1b\\[2K([^\x1b]*)\x1b8")


class Terminal(io.StringIO):
    def shown(self) -> list[str]:
        text = self.getvalue()
        assert FRAME.sub("", text) == "", "something was written where pytest's output stands"
        return FRAME.findall(text)


def test_steps_and_epochs() -> None:
    terminal = Terminal()
    line = LiveLine(terminal)
    line.step("training: badnets")
    line.epoch(1, 10, 0.5, 1234.5)
    line.clear()
    assert terminal.shown() == ["training: badnets", ""], "an epoch at once after its step is no news"


def test_epochs_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    line = LiveLine(terminal)
    clock = iter([1.0, 2.0, 2.0, 2.1, 3.0, 3.0])
    monkeypatch.setattr("gauntlet.live.time.monotonic", lambda: next(clock))
    line.step("training")
    for epoch in (1.0, 1.5, 2.0):
        line.epoch(epoch, 10, 0.5, 12345)
    assert terminal.shown() == [
        "training",
        "training: epoch 1 of 10, loss 0.500, 12,345 images/s",
        "training: epoch 2 of 10, loss 0.500, 12,345 images/s",
    ]


def test_a_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    LiveLine(terminal).step("x" * 500)
    monkeypatch.setattr(terminal, "fileno", lambda: 0)
    monkeypatch.setattr("gauntlet.live.os.get_terminal_size", lambda _number: os.terminal_size((30, 10)))
    LiveLine(terminal).step("x" * 500)
    assert [len(text) for text in terminal.shown()] == [79, 29]
