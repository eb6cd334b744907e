from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from defenses.fine_pruning import FinePruning, halves
from defenses.fine_tuning import FineTuning
from gauntlet.errors import NotApplicableError
from gauntlet.images import ImageSet, to_float
from gauntlet.maths.pruning import activations, last_convolution
from gauntlet.network import Network
from gauntlet.pipeline import Context, run
from gauntlet.randomness import seeded
from gauntlet.stats import pooled, ratio
from gauntlet.views import DefenderView
from models.shallow_net import ShallowNet
from tests.sample_cases import CaseMaker
from tests.sample_views import digits, small_victim, view_on


@pytest.fixture(scope="module")
def victim() -> Network:
    """Shared by the tests, which work on copies."""
    return small_victim()


@pytest.fixture
def view(victim: Network) -> DefenderView:
    return view_on(deepcopy(victim), digits(slice(1000, 1200)))


def pruned_channels(network: Network) -> list[int]:
    weight = last_convolution(network).weight
    return [channel for channel in range(len(weight)) if not weight[channel].any()]


def correct_without(network: Network, channels: Tensor, images: ImageSet) -> int:
    pruned = deepcopy(network)
    layer = last_convolution(pruned)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[channels] = 0
        return int((pruned(to_float(images.images())).argmax(1) == images.labels).sum())


@pytest.mark.parametrize("max_drop", [0.0, 0.05, 0.1, 0.5])
def test_the_least_active_channels_go_until_held_out_accuracy_has_dropped_too_far(
    max_drop: float, view: DefenderView, victim: Network
) -> None:
    ranking, held_out = halves(view.reserve, view.generator("held out"))
    order = activations(victim, ranking.images()).argsort(stable=True)
    correct = [correct_without(victim, order[:level], held_out) for level in range(64)]
    expected = next((n for n in range(64) if correct[n] < (1 - max_drop) * correct[0] - 1e-9), 64) - 1
    network = FinePruning(max_drop=max_drop).repair(view)

    assert network is view.victim
    assert pruned_channels(network) == sorted(order[:expected].tolist())
    assert 0 < expected < 63


def test_pruned_channels_stay_out_and_everything_else_is_fine_tuned(view: DefenderView, victim: Network) -> None:
    network = FinePruning(epochs=5, batch_size=32).repair(view)
    layer, before = last_convolution(network), last_convolution(victim)
    gone = pruned_channels(network)

    assert layer.bias is not None
    assert before.bias is not None
    assert gone
    assert not layer.bias[gone].any()
    assert ((layer.bias != before.bias) | (layer.bias == 0)).all()
    assert list(network.state_dict()) == list(victim.state_dict())
    assert not network.training
    assert not torch.equal(network.body.get_parameter("conv1.weight"), victim.body.get_parameter("conv1.weight"))
    assert correct_without(network, torch.arange(0), digits(slice(1200, None))) > 0.9 * 597


def test_it_tunes_by_the_settings_of_fine_tuning(view: DefenderView) -> None:
    """Where nothing may be pruned it is fine-tuning to the last bit."""
    with seeded(0, "single"):
        body = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
    single = Network(body, [0.3], [0.4], "2", "0").eval()
    tuned = FineTuning(epochs=2).repair(replace(view, victim=deepcopy(single)))
    pruned = FinePruning(epochs=2).repair(replace(view, victim=deepcopy(single)))

    assert not torch.equal(single.body.get_parameter("3.weight"), tuned.body.get_parameter("3.weight"))
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in tuned.state_dict().items())


def test_at_least_one_channel_stays(view: DefenderView) -> None:
    assert len(pruned_channels(FinePruning(max_drop=1, epochs=1).repair(view))) == 63


def test_frozen_weights_stay_frozen(view: DefenderView, victim: Network) -> None:
    view.victim.body.get_submodule("conv1").requires_grad_(False)
    view.victim.body.get_submodule("conv2").requires_grad_(False)
    network = FinePruning(epochs=2, learning_rate=0.1).repair(view)
    gone = pruned_channels(network)
    kept = [channel for channel in range(64) if channel not in gone]
    layer, before = last_convolution(network), last_convolution(victim)

    assert gone
    assert torch.equal(layer.weight[kept], before.weight[kept])
    assert torch.equal(network.body.get_parameter("conv1.weight"), victim.body.get_parameter("conv1.weight"))
    assert not torch.equal(network.body.get_parameter("dense.weight"), victim.body.get_parameter("dense.weight"))


@pytest.mark.parametrize("size", [2, 3, 10])
def test_a_handful_of_images_is_enough(size: int, view: DefenderView) -> None:
    network = FinePruning(epochs=2).repair(replace(view, reserve=view.reserve.subset(torch.arange(size))))
    assert 0 <= len(pruned_channels(network)) <= 63
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_a_reserve_without_some_classes(view: DefenderView) -> None:
    reserve = view.reserve.subset(view.reserve.labels < 3)
    assert pruned_channels(FinePruning(epochs=1).repair(replace(view, reserve=reserve)))


def test_without_a_convolution_it_says_nothing(view: DefenderView) -> None:
    shallow = Network(ShallowNet().build((1, 8, 8), 10), [0.3], [0.4], "sigmoid", None)
    with pytest.raises(NotApplicableError, match="has none"):
        FinePruning().repair(replace(view, victim=shallow))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 99))
def test_halves_are_disjoint_and_stratified(labels: list[int], seed: int) -> None:
    images = ImageSet.of(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), torch.tensor(labels))
    one, other = halves(images, torch.Generator().manual_seed(seed))

    assert sorted([*one.rows.tolist(), *other.rows.tolist()]) == list(range(len(labels)))
    assert 0 <= len(one) - len(other) <= 1
    for label in set(labels):
        assert abs(int((one.labels == label).sum()) - int((other.labels == label).sum())) <= 1


def test_it_removes_badnets_where_fine_tuning_does_not(context: Context, make_case: CaseMaker) -> None:
    """On the whole: what a single seed does differs widely (docs/defenses.md), also with the number of threads."""

    def rates(defense: str) -> tuple[float, float]:
        scores = run(make_case("badnets", defense, seeds=(0, 1, 2)), context).scores
        return ratio(pooled(score.clean for score in scores)), ratio(pooled(score.backdoors[0].asr for score in scores))

    tuned, pruned = rates("fine_tuning"), rates("fine_pruning")
    assert tuned[1] > 0.8
    assert pruned[1] < tuned[1] - 0.2
    assert pruned[0] > 0.94
