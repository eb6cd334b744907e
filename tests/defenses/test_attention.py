"""SentiNet, the latent comparison and gradient shaping on real networks."""

from __future__ import annotations

import pytest
import torch

from defenses.sentinet import boundary
from gauntlet.errors import SettingError
from gauntlet.pipeline import Context, run
from tests.sample_cases import CaseMaker


@pytest.mark.parametrize(("name", "least"), [("sentinet", 0.6), ("latent_comparison", 0.75)])
def test_a_patch_is_told_from_clean_images(name: str, least: float, context: Context, make_case: CaseMaker) -> None:
    (score,) = run(make_case("badnets", name), context).scores
    assert score.detector is not None
    (found,) = score.detector.backdoors
    assert found.auroc > least
    assert score.detector.clean.hits / score.detector.clean.n < 0.25


def test_sentinet_needs_a_convolution(context: Context, make_case: CaseMaker) -> None:
    from gauntlet.errors import NotApplicableError

    with pytest.raises(NotApplicableError, match="the network has none"):
        run(make_case("badnets", "sentinet", model="shallow_net"), context)


def test_a_reserve_of_two_is_too_small_for_sentinet(context: Context, make_case: CaseMaker) -> None:
    with pytest.raises(SettingError, match="from 4 images"):
        run(make_case("badnets", "sentinet", reserve=2), context)


def test_the_boundary_goes_through_the_highest_of_each_interval() -> None:
    inert = torch.tensor([0.05, 0.07, 0.45, 0.48, 0.95])
    fooled = torch.tensor([0.1, 0.3, 0.05, 0.2, 0.4])
    curve = boundary(fooled, inert)
    x = torch.tensor([0.07, 0.48, 0.95], dtype=torch.float64)
    values = curve[0] + curve[1] * x + curve[2] * x * x
    torch.testing.assert_close(values, torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64), rtol=1e-3, atol=1e-3)


def test_gradient_shaping_learns_the_task(context: Context, make_case: CaseMaker) -> None:
    settings = {"learning_rate": 5e-3, "batch_size": 64}
    (score,) = run(make_case("badnets", "gradient_shaping", model="le_net", defense_settings=settings), context).scores
    assert score.clean.hits / score.clean.n > 0.8
