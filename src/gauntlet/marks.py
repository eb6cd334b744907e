"""Cases as pytest parameters: their ids, and the marks that `-k` and `-m` find them by."""

from __future__ import annotations

from typing import Any

import pytest

from gauntlet.attack import Family
from gauntlet.case import Case
from gauntlet.defense import Stage
from gauntlet.expansion import slug
from gauntlet.plugin import name_of
from gauntlet.session import Session

__all__ = ["marks_of", "parameters", "register_families"]


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


def parameters(session: Session, config: pytest.Config) -> list[Any]:
    """One parameter a case. Cases that share a victim share an xdist group."""
    marks = {name: meaning for case in session.cases for name, meaning in marks_of(case).items()}
    for name, meaning in {**marks, "xdist_group": "cases that share a victim"}.items():
        config.addinivalue_line("markers", f"{name}: {meaning} (gauntlet)")
    made = {name: getattr(pytest.mark, name) for name in marks}
    return [
        pytest.param(
            case,
            id=case.id,
            marks=[*(made[name] for name in marks_of(case)), pytest.mark.xdist_group(session.victims(case)[0][:12])],
        )
        for case in session.cases
    ]


def register_families(config: pytest.Config) -> None:
    """For `pytest --markers`, which collects nothing: the marks that don't depend on a suite."""
    for family in Family:
        config.addinivalue_line("markers", f"{family}: cases with an attack of this family (gauntlet)")
    for stage in Stage:
        config.addinivalue_line("markers", f"{slug(stage)}: cases with a defense of this stage (gauntlet)")
