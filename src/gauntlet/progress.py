"""How long work tells that it goes on; the pytest plug-in and the command line bring their own."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Where the engine says what it does."""

    def step(self, text: str) -> None:
        """A step of a case begins: `training badnets on le_net, seed 0`."""
        ...

    def epoch(self, done: float, total: float, loss: float, rate: float) -> None:
        """Epochs done of total, the mean loss of the last one, and images a second."""
        ...


class Silent:
    """Says nothing."""

    def step(self, text: str) -> None:
        pass

    def epoch(self, done: float, total: float, loss: float, rate: float) -> None:
        pass
