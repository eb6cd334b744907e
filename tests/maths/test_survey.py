from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from defenses.neural_cleanse import NeuralCleanse
from gauntlet.images import ImageSet
from gauntlet.maths.inversion import Search, anomaly_index, invert
from gauntlet.maths.survey import Survey, Surveyed, brief_search, survey
from gauntlet.network import Network
from tests.sample_views import view_on

CLASSES, TARGET = 90, 37
FULL = Search(steps=60, batch=8, learning_rate=0.5, cost=0.1, patience=5)
PLAN = Survey(closest=8, ordinary=12)


@pytest.fixture(scope="module")
def network() -> Network:
    """Random templates for 90 classes, and one class that four corner pixels alone can bring about."""
    weights = torch.randn(CLASSES, 64, generator=seeded(1))
    weights = 4 * weights / weights.norm(dim=1, keepdim=True)
    weights[TARGET, [0, 1, 8, 9]] += 40
    linear = nn.Linear(64, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(weights)
        # Of the grey that images are on average every class thinks the same.
        linear.bias.copy_(weights.sum(1) * 0.25)
        linear.bias[TARGET] -= 10
    return Network(nn.Sequential(nn.Flatten(), linear), [0.5], [1.0], "1", None).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(60, 1, 8, 8, generator=seeded(3)) * 0.5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def surveyed(network: Network, images: Tensor) -> Surveyed:
    return survey(network, images, CLASSES, FULL, PLAN, generator=seeded())


def test_it_names_the_planted_class_as_the_search_of_all_does(
    network: Network, images: Tensor, surveyed: Surveyed
) -> None:
    whole = invert(network, images, torch.arange(CLASSES), FULL, generator=seeded())
    expected = anomaly_index(whole.norms)

    assert int(expected.argmax()) == int(surveyed.anomaly.argmax()) == TARGET
    assert expected[TARGET] > 2
    assert surveyed.anomaly[TARGET] > 2
    torch.testing.assert_close(surveyed.found.norms[TARGET], whole.norms[TARGET], rtol=0.2, atol=0.3)


def test_so_many_are_searched_in_full_and_the_rest_briefly(
    network: Network, images: Tensor, surveyed: Surveyed
) -> None:
    generator = seeded()
    brief = invert(network, images, torch.arange(CLASSES), brief_search(8, 8), generator=generator)
    closest = brief.norms.argsort(stable=True)[: PLAN.closest]
    rest = ~surveyed.full

    assert int(surveyed.full.sum()) == 20
    assert surveyed.full[closest].all()
    assert torch.equal(surveyed.found.norms[rest], brief.norms[rest])
    assert torch.equal(surveyed.found.masks[rest], brief.masks[rest])
    torch.testing.assert_close(surveyed.anomaly[rest], anomaly_index(brief.norms)[rest])
    ordinary = surveyed.full.clone()
    ordinary[closest] = False
    torch.testing.assert_close(
        surveyed.anomaly[surveyed.full],
        anomaly_index(surveyed.found.norms[surveyed.full], surveyed.found.norms[ordinary]),
    )


def test_the_generator_alone_decides(network: Network, images: Tensor, surveyed: Surveyed) -> None:
    again = survey(network, images, CLASSES, FULL, PLAN, generator=seeded())
    other = survey(network, images, CLASSES, FULL, PLAN, generator=seeded(1))

    assert torch.equal(again.anomaly, surveyed.anomaly)
    assert torch.equal(again.found.masks, surveyed.found.masks)
    assert not torch.equal(other.full, surveyed.full)


def test_the_anomaly_index_among_others_by_hand() -> None:
    """The median is 11, the deviations 10 1 0 1 2, their median 1."""
    found = anomaly_index(torch.tensor([8.0, 11, 14]), torch.tensor([1.0, 10, 11, 12, 13]))

    torch.testing.assert_close(found, torch.tensor([3, 0, -3]).double() / 1.4826)


def test_neural_cleanse_surveys_many_classes_and_suspects_only_what_it_searched_in_full(
    network: Network, images: Tensor
) -> None:
    reserve = ImageSet.of((images * 255).to(torch.uint8), torch.arange(60) % CLASSES)
    defense = NeuralCleanse(
        steps=60, batch_size=8, learning_rate=0.5, mask_cost=0.1, patience=5, closest=8, ordinary=12, repair=False
    )
    found = defense.inspect(view_on(network, reserve, CLASSES))
    whole = replace(defense, survey_from=CLASSES).inspect(view_on(network, reserve, CLASSES))
    strict = replace(defense, max_index=0.1).inspect(view_on(network, reserve, CLASSES))

    assert TARGET in found.suspects
    assert TARGET in whole.suspects
    assert int(found.anomaly.argmax()) == int(whole.anomaly.argmax()) == TARGET
    assert found.masks is not None
    assert found.masks.shape == (CLASSES, 1, 8, 8)
    assert len(strict.suspects) <= 20
    assert (strict.anomaly <= 0.1).sum() >= CLASSES - 20
