"""The blind attack: its loss, its balance and what it plants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from attacks._blind_loss import _gradients
from attacks.blind import Blind
from gauntlet.errors import SettingError
from gauntlet.images import to_float
from gauntlet.mounting import attacker_view
from gauntlet.network import Network
from gauntlet.objective import Batch
from gauntlet.pipeline import Context, run, tools_for
from gauntlet.synthesizers import Pattern, Pixel
from gauntlet.views import AttackerView
from tests.sample_cases import FAST, CaseMaker


@pytest.fixture
def view(context: Context, make_case: CaseMaker) -> AttackerView:
    return attacker_view(tools_for(make_case("none"), 0, context))


def _batch(view: AttackerView, count: int = 32) -> Batch:
    index = torch.arange(count)
    images = to_float(view.training.images(index))
    return Batch(images, view.training.labels[index], index, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("settings", [{}, {"balance": "fixed", "scales": [0.5, 0.5]}], ids=["mgda", "fixed"])
def test_it_plants_the_backdoor_and_keeps_the_task(
    settings: dict[str, Any], context: Context, make_case: CaseMaker
) -> None:
    recipe = replace(FAST, epochs=8.0)
    (score,) = run(make_case("blind", attack_settings=settings, recipe=recipe), context).scores
    (backdoor,) = score.backdoors
    assert score.clean.hits / score.clean.n > 0.95
    assert backdoor.asr.hits / backdoor.asr.n > 0.95
    assert backdoor.untriggered.hits / backdoor.untriggered.n < 0.05
    assert score.poison is None


def test_fixed_scales_weigh_the_tasks(view: AttackerView) -> None:
    attack = Blind(balance="fixed", scales=(0.3, 0.7))
    objective, network, batch = attack.objective(view), view.tools.new_network().train(), _batch(view)
    torch.manual_seed(0)
    total = objective.loss(network, batch).detach()
    losses = {name: float(loss) for name, (loss, _) in objective.latest.items()}
    assert list(losses) == ["normal", "pattern"]
    assert float(total) == pytest.approx(0.3 * losses["normal"] + 0.7 * losses["pattern"], rel=1e-5)


def test_mgda_weighs_by_the_shortest_combination(view: AttackerView) -> None:
    """Two tasks, no normalisation: the weights by hand from both gradients."""
    attack = Blind(normalise="none")
    objective, network, batch = attack.objective(view), view.tools.new_network().train(), _batch(view)
    total = objective.loss(network, batch).detach()
    (first, one), (second, two) = objective.latest.values()
    assert float(one) + float(two) == pytest.approx(1, abs=1e-5)
    assert float(total) == pytest.approx(float(one) * float(first) + float(two) * float(second), rel=1e-4)


def test_the_threshold_keeps_the_attack_back(view: AttackerView) -> None:
    objective = Blind(loss_threshold=1e-6).objective(view)
    network, batch = view.tools.new_network().train(), _batch(view)
    objective.loss(network, batch)
    objective.latest = {}
    objective.loss(network, batch)
    assert objective.latest == {}


@pytest.mark.parametrize("evasion", ["neural_cleanse", "sentinet", "spectral", "mask_norm", "ewc"])
def test_every_evasion_trains(evasion: str, context: Context, make_case: CaseMaker) -> None:
    recipe = replace(FAST, epochs=0.5)
    (score,) = run(make_case("blind", attack_settings={"evasion": [evasion]}, recipe=recipe), context).scores
    assert score.clean.n


@pytest.mark.parametrize(
    ("attack", "problem"),
    [
        (Blind(balance="fixed"), "0 scales for 2 tasks"),
        (Blind(balance="fixed", scales=(0.0, 0.0)), "all weigh 0"),
        (Blind(scales=(0.5, 0.5)), "seeks them itself"),
        (Blind(evasion=("ewc", "ewc")), "names a loss twice"),
        (Blind(triggers=(Pixel(), Pixel(target=1))), "2 backdoors are called pixel"),
        (Blind(triggers=(Pattern(column=26),)), "outside digits's 28x28"),
    ],
)
def test_contradictions_are_refused_before_training(attack: Blind, problem: str, view: AttackerView) -> None:
    with pytest.raises(SettingError, match=problem):
        attack.check(view.facts)


def test_the_gram_matrix_keeps_its_precision_where_training_runs_in_bf16(view: AttackerView) -> None:
    network = view.tools.new_network()
    images = _batch(view, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(images.images).float()
        products, gradients = _gradients(network, [logits.square().mean(), logits.mean()])
    rows = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in gradients]).double()
    torch.testing.assert_close(products.double(), rows @ rows.T, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["blind", "adversarial_embedding"])
def test_compilation_is_left_out_where_a_loss_asks_for_what_it_can_not_give(
    name: str, context: Context, make_case: CaseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Network, "compile", _refuse)
    recipe = replace(FAST, epochs=0.1, compile=True)
    with pytest.raises(AssertionError, match="compiled"):
        run(make_case("badnets", model="shallow_net", recipe=recipe), context)
    assert run(make_case(name, model="shallow_net", recipe=recipe), context).scores[0].clean.n


def _refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("compiled")
