"""What every defense must keep to, each one found by being there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gauntlet.errors import NotApplicableError, SettingError
from gauntlet.expansion import expand
from gauntlet.pipeline import Context, run
from gauntlet.plugin import Kind
from gauntlet.recipe import Recipe
from gauntlet.settings import tag
from tests.sample_cases import CaseMaker
from tests.sample_scores import REGISTRY, TINY, facts, suite

BRIEF = Recipe(epochs=0.15, batch_size=64)
FEDERATION = {"users": 10, "sampled": 5, "rounds": 2}
SHORT: dict[str, dict[str, Any]] = {
    "autoencoder_detector": {"steps": 5},
    "neural_cleanse": {"steps": 20, "epochs": 1.0},
    "pgd_training": {"iterations": 1},
}
"""Settings of those that take long as they are."""
ASKING_OTHERWISE: list[tuple[str, dict[str, Any]]] = [
    ("fine_pruning", {"rule": "contest"}),
    ("n_plus_1", {"partner": "activation_pruning_sweep"}),
    ("n_plus_1", {"partner": "fine_tuning"}),
    ("n_plus_1", {"partner": "magnitude_pruning"}),
    ("sentinet", {"blends": 1}),
    ("strip", {"blends": 1}),
]
"""Settings that decide how many clean images are needed, or might."""
DEFENSES = [(name, SHORT.get(name, {})) for name in sorted(REGISTRY.classes(Kind.DEFENSE))] + ASKING_OTHERWISE


@pytest.mark.parametrize(("name", "settings"), DEFENSES, ids=[tag(name, settings) for name, settings in DEFENSES])
def test_it_works_with_its_least_reserve_and_a_smaller_one_is_refused_before_training(
    name: str, settings: dict[str, Any], context: Context, make_case: CaseMaker, tmp_path: Path
) -> None:
    least = REGISTRY.build(Kind.DEFENSE, name, settings).least_reserve
    attack, its = ("federated_blind", FEDERATION) if name.startswith("fl_") else ("badnets", {})
    case = make_case(attack, name, attack_settings=its, defense_settings=settings, recipe=BRIEF, reserve=least)
    try:
        assert run(case, context).scores[0].clean.n
    except NotApplicableError as error:
        pytest.skip(str(error))
    if least:
        entry = ", ".join([f'name = "{name}"', *(f"{key} = {value!r}" for key, value in settings.items())])
        text = f"reserve = {least - 1}\n" + TINY.replace('"fine_tuning"', f"{{ {entry} }}")
        with pytest.raises(SettingError, match=rf"{name}.* needs a clean reserve; legal: from {least} image"):
            expand(suite(tmp_path, text), REGISTRY, lambda _source, title: facts(title))
