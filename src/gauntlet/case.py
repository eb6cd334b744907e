"""A case: one cell of the cross-product, pooled over its seeds. Plain values; nothing here runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from gauntlet.architecture import Architecture
from gauntlet.attack import Attack
from gauntlet.defense import Defense
from gauntlet.plugin import name_of
from gauntlet.recipe import Recipe
from gauntlet.records import Gate
from gauntlet.settings import changed, tag
from gauntlet.task import TaskSource

__all__ = ["Case", "label"]


def label(plugin: object) -> str:
    """`badnets[patch=5,poison_ratio=0.01]`: the name, and the settings that differ from their defaults."""
    return tag(name_of(plugin), changed(plugin))


@dataclass(frozen=True)
class Case:
    """task_name: as the user wrote it. reserve: clean images that the defender holds. min_undefended_asr: below it
    an attack counts as failed and its defended cases say so. collapse: a defended clean accuracy below this share
    of the undefended one is a collapse. expected: why this case is expected to break its gate ('' if it is not).
    parts: the cross-products of the suite that it stands in, from 0, the suite's own.
    """

    suite: str
    task_name: str
    task: TaskSource
    architecture: Architecture
    attack: Attack
    defense: Defense
    recipe: Recipe
    reserve: int
    seeds: tuple[int, ...]
    gate: Gate = field(default_factory=Gate)
    min_undefended_asr: float = 0.5
    collapse: float = 0.5
    expected: str = ""
    parts: tuple[int, ...] = (0,)

    @cached_property
    def id(self) -> str:
        """The leaderboard's key: `digits-le_net-badnets[poison_ratio=0.01]-fine_tuning`."""
        parts = (label(self.architecture), label(self.attack), label(self.defense))
        return "-".join((self.task_name, *parts))
