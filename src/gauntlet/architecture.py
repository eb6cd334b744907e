"""The base of every model plug-in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gauntlet.facts import TaskFacts

__all__ = ["Architecture"]


@dataclass(frozen=True)
class Architecture:
    """A network architecture. feature_layer and last_conv are module paths inside what `build` returns."""

    feature_layer: ClassVar[str]
    last_conv: ClassVar[str | None]

    def check(self, facts: TaskFacts) -> None:
        """Raise SettingError, with the legal range, when this architecture can't take the task's images."""

    def origin(self) -> str:
        """Where the initial weights come from, as the record says it."""
        return "from scratch"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """A module from normalised images of `shape` (C, H, W) to logits, initialised from torch's generator."""
        raise NotImplementedError
