from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from gauntlet.case import Case
from gauntlet.pipeline import Context
from gauntlet.plugin import Kind
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.sharing import share
from gauntlet.store import Store
from gauntlet.task import LoadContext
from tests.sample_cases import FAST, CaseMaker

# The same examples in every run, so that a change fails by what it changes; GAUNTLET_HYPOTHESIS=search draws new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("GAUNTLET_HYPOTHESIS", "same"))

SHARED = Path(__file__).parents[1] / "../shared/data"


def pytest_configure(config: pytest.Config) -> None:
    """Workers that share the cores must not each use them all."""
    if hasattr(config, "workerinput"):
        share("cpu", 0, config.workerinput["workercount"])


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="session")
def context(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A store of the test session's own, shared by the tests that only read what they make."""
    root = tmp_path_factory.mktemp("store")
    return Context(Store(root, _fail), registry, torch.device("cpu"), LoadContext(root / "data", offline=True))


def _fail(warning: str) -> None:
    raise AssertionError(warning)


@pytest.fixture(scope="session")
def make_case(registry: Registry) -> CaseMaker:
    """A case on the digits by the names of its parts; settings as dictionaries."""

    def make(
        attack: str,
        defense: str = "none",
        *,
        model: str = "simple_cnn",
        attack_settings: dict[str, Any] | None = None,
        defense_settings: dict[str, Any] | None = None,
        recipe: Recipe = FAST,
        seeds: tuple[int, ...] = (0,),
        reserve: int = 100,
    ) -> Case:
        return Case(
            suite="tests",
            task_name="digits",
            task=registry.task("digits"),
            architecture=registry.build(Kind.MODEL, model, {}),
            attack=registry.build(Kind.ATTACK, attack, attack_settings or {}),
            defense=registry.build(Kind.DEFENSE, defense, defense_settings or {}),
            recipe=recipe,
            reserve=reserve,
            seeds=seeds,
        )

    return make
