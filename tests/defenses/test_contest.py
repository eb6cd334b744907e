"""The defenses of CSAW-HackML-2020 on small victims: fine-pruning by its rule, N + 1, and what other entries did."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from defenses.activation_pruning_sweep import ActivationPruningSweep
from defenses.fine_pruning import FinePruning, halves
from defenses.magnitude_pruning import MagnitudePruning, decayed
from defenses.n_plus_1 import NPlusOne
from gauntlet.defense import Repair
from gauntlet.errors import NotApplicableError, SettingError
from gauntlet.images import ImageSet, to_float
from gauntlet.maths.disagreement import contradiction, dissent
from gauntlet.maths.pruning import activations, sweep
from gauntlet.network import Network
from gauntlet.pipeline import Context, run
from gauntlet.randomness import seeded
from gauntlet.recipe import Recipe
from gauntlet.settings import build
from gauntlet.training import fit
from gauntlet.views import DefenderView
from models.deepid import DeepId
from models.shallow_net import ShallowNet
from tests.sample_cases import CaseMaker
from tests.sample_views import CPU, RECIPE, Tools, digits, small_victim, view_on

RESERVE = slice(1000, 1200)


@pytest.fixture(scope="module")
def victim() -> Network:
    """Shared by the tests, which work on copies."""
    return small_victim()


@pytest.fixture
def view(victim: Network) -> DefenderView:
    return view_on(deepcopy(victim), digits(RESERVE))


def layer_of(network: Network, path: str) -> nn.Conv2d:
    layer = network.body.get_submodule(path)
    assert isinstance(layer, nn.Conv2d)
    return layer


def dead(network: Network, path: str = "conv2") -> list[int]:
    """Channels whose kernel and bias are 0."""
    layer = layer_of(network, path)
    assert layer.bias is not None
    return [c for c in range(layer.out_channels) if not layer.weight[c].any() and not layer.bias[c].any()]


def summed_outputs(network: Network, path: str, images: ImageSet) -> Tensor:
    """Of a ReLU, over images and positions: the contest's ranking, by hand."""
    seen: list[Tensor] = []
    handle = network.body.get_submodule(path).register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        network(to_float(images.images()))
    handle.remove()
    return seen[-1].double().sum((0, 2, 3))


def asked(view: DefenderView) -> list[dict[str, Any]]:
    assert isinstance(view.tools, Tools)
    return view.tools.trainings


@pytest.mark.parametrize(("share", "count"), [(0.77, 49), (0.5, 32), (0.01, 0), (1.0, 64)])
def test_the_contests_rule_prunes_so_many_of_the_least_active_on_the_whole_reserve(
    share: float, count: int, view: DefenderView, victim: Network
) -> None:
    order = summed_outputs(victim, "relu2", view.reserve).argsort(stable=True)
    network = FinePruning(rule="contest", share=share, tune=False).repair(view)
    others = [name for name in victim.state_dict() if "conv2" not in name]

    assert dead(network) == sorted(order[:count].tolist())
    assert asked(view) == []
    assert all(torch.equal(network.state_dict()[name], victim.state_dict()[name]) for name in others)
    kept = order[count:]
    assert torch.equal(layer_of(network, "conv2").weight[kept], layer_of(victim, "conv2").weight[kept])


def test_the_contest_tunes_everything_with_amsgrad(view: DefenderView) -> None:
    network = FinePruning(rule="contest").repair(view)
    (training,) = asked(view)

    assert network is view.victim
    assert training["images"] is view.reserve
    assert training["recipe"] == Recipe(
        epochs=5, batch_size=200, optimizer="amsgrad", learning_rate=1e-3, precision="fp32"
    )
    FinePruning(rule="contest", epochs=1, batch_size=20, learning_rate=0.5).repair(view)
    assert asked(view)[1]["recipe"] == Recipe(
        epochs=1, batch_size=20, optimizer="amsgrad", learning_rate=0.5, precision="fp32"
    )


def normalised_victim() -> Network:
    """Batch normalisation lets gradients reach a channel that is 0."""
    with seeded(0, "normalised"):
        body = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    network = Network(body, [0.3], [0.4], "2", "0")
    fit(network, digits(slice(0, 1000)), RECIPE, seed=0, purpose=("training",), device=CPU)
    return network


@pytest.mark.parametrize(("rule", "revive", "alive"), [("contest", None, True), ("contest", False, False)])
def test_pruned_channels_revive_where_the_rule_lets_them(rule: Any, revive: bool | None, alive: bool) -> None:
    view = view_on(normalised_victim(), digits(RESERVE))
    network = FinePruning(rule=rule, revive=revive).repair(view)
    (training,) = asked(view)
    pruned = [c for c in range(16) if not training["before"]["body.0.weight"][c].any()]

    assert len(pruned) == 12
    assert [bool(layer_of(network, "0").weight[c].any()) for c in pruned] == [alive] * 12


def test_the_papers_channels_revive_on_request_only() -> None:
    kept, revived = (
        FinePruning(max_drop=0.5, revive=revive).repair(view_on(normalised_victim(), digits(RESERVE)))
        for revive in (None, True)
    )

    assert dead(kept, "0")
    assert dead(revived, "0") == []


def test_right_behind_a_relu_nothing_revives(view: DefenderView) -> None:
    """A channel that is 0 everywhere has a ReLU's gradient there, 0: the contest's leave is none."""
    assert len(dead(FinePruning(rule="contest").repair(view))) == 49


@pytest.mark.parametrize(
    "repair", [FinePruning(rule="contest", layer="conv1", tune=False), ActivationPruningSweep(layer="conv1")], ids=repr
)
def test_another_layer_by_its_path(repair: Repair, view: DefenderView, victim: Network) -> None:
    network = repair.repair(view)

    assert 0 < len(dead(network, "conv1")) < 32
    assert torch.equal(layer_of(network, "conv2").weight, layer_of(victim, "conv2").weight)


@pytest.mark.parametrize("path", ["dense", "conv3", "conv1.weight", " "])
@pytest.mark.parametrize("repair", [FinePruning(), FinePruning(rule="contest"), ActivationPruningSweep()], ids=repr)
def test_what_is_no_convolution_is_refused_with_those_there_are(
    repair: FinePruning | ActivationPruningSweep, path: str, view: DefenderView
) -> None:
    with pytest.raises(SettingError, match="no convolution of this network; legal: conv1, conv2"):
        replace(repair, layer=path).repair(view)


def test_without_a_convolution_they_say_nothing(view: DefenderView) -> None:
    shallow = Network(ShallowNet().build((1, 8, 8), 10), [0.3], [0.4], "sigmoid", None)
    for repair in (FinePruning(rule="contest"), ActivationPruningSweep()):
        with pytest.raises(NotApplicableError, match="has none"):
            repair.repair(replace(view, victim=shallow))


def test_46_channels_of_conv_3_in_the_contests_own_network() -> None:
    with seeded(0, "deepid"):
        network = Network(DeepId().build((3, 55, 47), 20), [0.0] * 3, [1.0] * 3, *DeepId().taps(nn.Identity()))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 55, 47), generator=generator).to(torch.uint8)
    view = view_on(network, ImageSet.of(images, torch.arange(30) % 20), classes=20)
    order = summed_outputs(network, "conv_3_relu", view.reserve).argsort(stable=True)
    levels = [0, 20, 46, 60]
    swept = sweep(network, images, order, levels, "conv_3")
    repaired = FinePruning(rule="contest", layer="conv_3", tune=False).repair(view)

    assert dead(repaired, "conv_3") == sorted(order[:46].tolist())
    with torch.no_grad():
        assert torch.equal(swept[2], repaired(to_float(images)).argmax(1))


# N + 1


@given(
    st.integers(2, 6).flatmap(
        lambda classes: st.lists(
            st.tuples(
                st.lists(
                    st.floats(-(2.0**99), 2.0**99, width=32) | st.sampled_from([0.0, 1.0, 2.0**-149, -0.0]),
                    min_size=classes,
                    max_size=classes,
                ),
                st.integers(0, classes - 1),
            ),
            min_size=1,
            max_size=20,
        )
    )
)
def test_dissent_is_above_0_exactly_where_the_argmax_is_another_class(rows: list[tuple[list[float], int]]) -> None:
    logits, classes = torch.tensor([row for row, _ in rows]), torch.tensor([chosen for _, chosen in rows])
    found = dissent(logits, classes)

    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert torch.equal(found > 0, logits.argmax(1) != classes)


def test_dissent_by_hand() -> None:
    logits = torch.tensor([[3.0, 1, 0], [3, 1, 0], [2, 2, 0], [2, 2, 0]])
    found = dissent(logits, torch.tensor([0, 1, 0, 1]))

    assert found[:3].tolist() == [-2, 2, 0]
    assert 0 < found[3] < 1e-30


def test_it_flags_exactly_the_disagreements_and_leaves_the_victim_alone(view: DefenderView, victim: Network) -> None:
    detector = NPlusOne(epochs=3, batch_size=20)
    images = to_float(digits(slice(1200, None)).images())
    scorer = detector.scorer(view)
    repaired = detector.repaired(view)
    with torch.no_grad():
        differ = victim(images).argmax(1) != repaired(images).argmax(1)

    assert torch.equal(scorer(images) > 0, differ)
    assert 0 < int(differ.sum()) < len(images) / 2
    assert all(torch.equal(value, victim.state_dict()[name]) for name, value in view.victim.state_dict().items())
    torch.testing.assert_close(torch.cat([scorer(image[None]) for image in images[:9]]), scorer(images)[:9])


def test_a_network_never_contradicts_itself(victim: Network) -> None:
    images = to_float(digits(RESERVE).images())

    assert (contradiction(victim, victim, images, dtype=torch.float32) <= 0).all()


def test_there_is_no_rate_to_choose_and_the_whole_reserve_repairs() -> None:
    assert NPlusOne().limit == 0
    assert NPlusOne().learns_from(77) == 77
    assert "false_positive_rate" not in {field.name for field in fields(NPlusOne)}
    with pytest.raises(SettingError, match="unknown setting 'false_positive_rate'"):
        build(NPlusOne, {"false_positive_rate": 0.1}, "n_plus_1")


@pytest.mark.parametrize("partner", ["fine_pruning", "fine_tuning", "magnitude_pruning", "activation_pruning_sweep"])
def test_any_partner(partner: Any, view: DefenderView) -> None:
    scores = NPlusOne(partner=partner).scorer(view)(to_float(view.reserve.images()))

    assert scores.shape == (200,)
    assert scores.isfinite().all()
    assert (scores > 0).float().mean() < 0.5


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"partner": "fine_tuning", "layer": "conv1"}, "layer is set, and the partner fine_tuning has no such"),
        ({"partner": "activation_pruning_sweep", "epochs": 2}, "epochs is set"),
        ({"partner": "strip"}, "setting partner = 'strip'"),
    ],
)
def test_settings_that_no_partner_has_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        build(NPlusOne, settings, "n_plus_1")


def test_its_own_settings_reach_the_partner(view: DefenderView) -> None:
    NPlusOne(epochs=1, batch_size=50, learning_rate=0.01, layer="conv1").repaired(view)
    (training,) = asked(view)

    assert len([c for c in range(32) if not training["before"]["body.conv1.weight"][c].any()]) == int(32 * 0.77)
    assert training["recipe"] == Recipe(
        epochs=1, batch_size=50, optimizer="amsgrad", learning_rate=0.01, precision="fp32"
    )


def test_through_the_whole_pipeline(context: Context, make_case: CaseMaker) -> None:
    settings = {"epochs": 20, "batch_size": 20}
    (score,) = run(make_case("badnets", "n_plus_1", defense_settings=settings), context).scores

    assert score.detector is not None
    assert score.detector.threshold == 0
    assert score.detector.clean.hits < 0.15 * score.detector.clean.n
    assert score.detector.backdoors[0].flagged.hits > 0.5 * score.detector.backdoors[0].flagged.n


# Magnitude pruning


def test_the_polynomial_decay_by_hand() -> None:
    shares = [decayed(0.5, 0.8, update, 4) for update in range(4)]

    assert shares == pytest.approx([0.5, 0.8 - 0.3 * 8 / 27, 0.8 - 0.3 / 27, 0.8])
    assert decayed(0.5, 0.8, 0, 1) == 0.8


def zeros(state: dict[str, Tensor], path: str) -> Tensor:
    return state[f"body.{path}.weight"] == 0


def test_the_smallest_weights_go_and_never_come_back(view: DefenderView, victim: Network) -> None:
    network = MagnitudePruning(updates=4, epochs=8).repair(view)
    weight = victim.state_dict()["body.dense.weight"]
    masks = [zeros(training["before"], "dense") for training in asked(view)] + [zeros(network.state_dict(), "dense")]
    wanted = [round(share * weight.numel()) for share in (0.5, 0.8 - 0.3 * 8 / 27, 0.8 - 0.3 / 27, 0.8, 0.8)]

    assert [int(mask.sum()) for mask in masks] == wanted
    assert all((later | ~earlier).all() for earlier, later in pairwise(masks))
    assert weight[masks[0]].abs().max() <= weight[~masks[0]].abs().min()
    assert [training["purpose"] for training in asked(view)] == [("magnitude_pruning", str(n)) for n in range(4)]
    assert {training["recipe"].epochs for training in asked(view)} == {2.0}
    assert not zeros(network.state_dict(), "conv2").any()
    assert network is view.victim


@pytest.mark.parametrize(("layer", "path"), [("", "dense"), ("output", "output")])
def test_the_last_hidden_dense_layer_unless_another_is_named(layer: str, path: str, view: DefenderView) -> None:
    state = MagnitudePruning(layer=layer, updates=1, epochs=1).repair(view).state_dict()

    assert [name for name in ("dense", "output") if zeros(state, name).any()] == [path]


def test_what_magnitude_pruning_cannot_do_is_said(view: DefenderView) -> None:
    with pytest.raises(SettingError, match="'conv1' is no dense layer of this network; legal: dense, output"):
        MagnitudePruning(layer="conv1").repair(view)
    single = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), [0.3], [0.4], "1", None)
    with pytest.raises(NotApplicableError, match="has none"):
        MagnitudePruning().repair(replace(view, victim=single))
    with pytest.raises(SettingError, match="the share only grows"):
        build(MagnitudePruning, {"initial": 0.9}, "magnitude_pruning")


# The sweep


def correct_without(network: Network, channels: Sequence[int], images: ImageSet) -> int:
    pruned = deepcopy(network)
    with torch.no_grad():
        for parameter in layer_of(pruned, "conv2").parameters():
            parameter[list(channels)] = 0
        return int((pruned(to_float(images.images())).argmax(1) == images.labels).sum())


@pytest.mark.parametrize("drop", [0.02, 0.04, 0.1, 0.3])
def test_channels_go_to_the_first_level_at_which_accuracy_is_so_much_lower(
    drop: float, view: DefenderView, victim: Network
) -> None:
    ranking, held_out = halves(view.reserve, view.generator("held out"))
    order = activations(victim, ranking.images()).argsort(stable=True).tolist()
    correct = [correct_without(victim, order[:level], held_out) for level in range(64)]
    expected = next(level for level in range(64) if correct[0] - correct[level] >= drop * len(held_out) - 1e-9)

    assert dead(ActivationPruningSweep(drop=drop).repair(view)) == sorted(order[:expected])
    assert 0 < expected < 63
    assert asked(view) == []


def test_at_least_one_channel_stays(view: DefenderView) -> None:
    assert len(dead(ActivationPruningSweep(drop=1).repair(view))) == 63
