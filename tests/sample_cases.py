"""What tests of whole cases share."""

from __future__ import annotations

from typing import Any, Protocol

from gauntlet.case import Case
from gauntlet.recipe import Recipe

FAST = Recipe(epochs=12, learning_rate=3e-3, schedule="one_cycle", batch_size=64)
"""Trains simple_cnn on the digits in about a second."""


class CaseMaker(Protocol):
    def __call__(
        self,
        attack: str,
        defense: str = "none",
        *,
        model: str = "simple_cnn",
        attack_settings: dict[str, Any] | None = None,
        defense_settings: dict[str, Any] | None = None,
        recipe: Recipe = FAST,
        seeds: tuple[int, ...] = (0,),
        reserve: int = 100,
    ) -> Case: ...
