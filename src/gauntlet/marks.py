"""The marks that `-k` and `-m` find cases by, and what keeps those of one victim together."""

from __future__ import annotations

import hashlib

import pytest

from gauntlet.attack import Family
from gauntlet.case import Case, label
from gauntlet.defense import Stage
from gauntlet.expansion import slug
from gauntlet.plugin import name_of

__all__ = ["group_of", "marks_of", "register_families"]


def marks_of(case: Case) -> dict[str, str]:
    """Mark to its meaning: family and stage, attack and defense, task and architecture."""
    return {
        name_of(case.task): "cases on this task",
        name_of(case.architecture): "cases with this architecture",
        name_of(case.attack): "cases with this attack",
        name_of(case.defense): "cases with this defense",
        str(case.attack.family): "cases with an attack of this family",
        slug(case.defense.stage): "cases with a defense of this stage",
    }


def group_of(case: Case) -> str:
    """What the cases of one victim have in common, and no others."""
    parts = (case.task_name, label(case.architecture), label(case.attack), repr(case.recipe), repr(case.seeds))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def register_families(config: pytest.Config) -> None:
    """For `pytest --markers`, which collects nothing: the marks that don't depend on a suite."""
    for family in Family:
        config.addinivalue_line("markers", f"{family}: cases with an attack of this family (gauntlet)")
    for stage in Stage:
        config.addinivalue_line("markers", f"{slug(stage)}: cases with a defense of this stage (gauntlet)")
