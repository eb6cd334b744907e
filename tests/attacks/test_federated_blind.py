from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from attacks.federated_blind import FederatedBlind
from attacks.federated_none import FederatedNone
from defenses.fl_krum import FlKrum
from defenses.fl_median import FlMedian
from defenses.fl_multi_krum import FlMultiKrum
from defenses.fl_trimmed_mean import FlTrimmedMean
from gauntlet.defense import Aggregation
from gauntlet.errors import NotApplicableError, SettingError
from gauntlet.federated.federation import average
from gauntlet.federated.updates import flatten
from gauntlet.guard import Role, _turn
from gauntlet.mounting import attacker_view
from gauntlet.pipeline import Context, run, tools_for
from gauntlet.plugin import Kind
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.settings import build
from gauntlet.store import Store
from gauntlet.synthesizers.dynamic import Dynamic
from gauntlet.synthesizers.pixel import Pixel
from gauntlet.synthesizers.semantic import Semantic
from gauntlet.views import AttackerView
from tests.sample_cases import CaseMaker

BRIEF = Recipe(epochs=1, batch_size=32, optimizer="sgd", learning_rate=0.5)
SMALL = {"users": 12, "sampled": 5, "rounds": 3, "local_epochs": 1.0}
NAMES = sorted(name for name in Registry.discover().classes(Kind.DEFENSE) if name.startswith("fl_"))


@pytest.fixture
def view(context: Context, make_case: CaseMaker) -> AttackerView:
    return attacker_view(tools_for(make_case("none", model="shallow_net", recipe=BRIEF), 0, context))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"users": 5, "sampled": 6}, "sampled = 6 users a round of 5 users; legal: 1 to 5"),
        ({"scale": 3.0}, r"together with exact replacement, whose scale is N / eta = 10"),
        ({"scale": 3.0, "users": 50, "eta": 2.0}, r"N / eta = 25"),
        ({"replacement": "scaled"}, "needs a scale above 0"),
        ({"eta": 0.0}, "eta = 0.0"),
        ({"eta": -1.0}, "eta = -1.0"),
        ({"single_shot": 11}, "comes after the last round; legal: 1 to 10"),
        ({"users": 10, "adversaries": 11}, "adversaries = 11 of 10 users"),
        ({"single_shot": 2, "adversaries": 11}, "adversaries = 11 of 10 users of the attacked round"),
        ({"dirichlet": 0.0}, "dirichlet = 0.0"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        build(FederatedBlind, settings, "federated_blind")


def test_what_a_task_cannot_take_is_refused(view: AttackerView) -> None:
    with pytest.raises(SettingError, match="users = 5,000"):
        FederatedBlind(users=5000).check(view.facts)
    with pytest.raises(SettingError, match="target = 10"):
        FederatedBlind(triggers=(Pixel(target=10),)).check(view.facts)
    with pytest.raises(SettingError, match="row = 40"):
        FederatedNone(triggers=(Pixel(row=40),)).check(view.facts)
    with pytest.raises(SettingError, match=r"poisoning = 0\.6 of every batch for each of 2 triggers"):
        FederatedBlind(triggers=(Pixel(), Dynamic()), poisoning=0.6).check(view.facts)


def test_only_attackers_have_the_images_of_a_semantic_trigger(view: AttackerView) -> None:
    attack = FederatedBlind(**SMALL, triggers=(Semantic(label=7),))  # type: ignore[arg-type]
    shards = attack.shards(view)
    assert sum(len(shard) for shard in shards) == int((view.training.labels != 7).sum())
    assert not any((shard.labels == 7).any() for shard in shards)
    mounted = attack.mount(view)
    assert torch.equal(mounted.training.labels, view.training.labels[mounted.sources])


@pytest.mark.parametrize("eta", [None, 1.0, 4.0])
def test_exact_replacement_makes_the_global_network_the_attackers(eta: float | None, view: AttackerView) -> None:
    """When only the attacker moves, the new global network is its local one: (eta / N) * (N / eta) = 1."""
    attack = FederatedBlind(**SMALL, eta=eta, single_shot=3)  # type: ignore[arg-type]
    seen: list[torch.Tensor] = []

    def only_the_attacker(updates: torch.Tensor, rate: float, number: int) -> torch.Tensor:
        if number < 3:
            return average(updates, rate, number)
        seen.append(updates)
        alone = torch.zeros_like(updates)
        place = updates.norm(dim=1).argmax()
        alone[place] = updates[place]
        return average(alone, rate, number)

    mounted = attack.federate(view, only_the_attacker)
    assert mounted.trajectory is not None
    before, after = mounted.trajectory.states[1], mounted.trajectory.states[2]
    (attacker,) = attack.attackers(view, 3, attack.sample(view, 3))
    place = attack.sample(view, 3).index(attacker)
    assert int(seen[0].norm(dim=1).argmax()) == place
    local = before + seen[0][place] / attack.replacement_scale
    torch.testing.assert_close(after, local, atol=1e-5, rtol=1e-4)


def test_attackers_of_a_round_share_the_scale_and_are_where_they_are_said_to_be(view: AttackerView) -> None:
    fixed = FederatedBlind(**SMALL, adversaries=4)  # type: ignore[arg-type]
    everybody = fixed.attackers(view, 1, range(12))
    assert len(everybody) == 4
    assert all(fixed.attackers(view, number, [0, 3, 7]) == everybody & {0, 3, 7} for number in (1, 2, 3))
    shot = dataclasses.replace(fixed, single_shot=2)
    users = shot.sample(view, 2)
    assert users == sorted(set(users))
    assert len(users) == 5
    assert len(shot.attackers(view, 2, users)) == 4
    assert shot.attackers(view, 2, users) <= set(users)
    assert not shot.attackers(view, 1, users)
    assert fixed.scale_of(2) == pytest.approx(2.5)
    assert FederatedBlind(replacement="scaled", scale=3.0).scale_of(2) == 3.0


def test_flower_drives_the_same_federation(view: AttackerView) -> None:
    pytest.importorskip("flwr", reason="Flower is not installed")
    attack = FederatedBlind(**SMALL, single_shot=2)  # type: ignore[arg-type]
    ours = attack.mount(view).network
    theirs = dataclasses.replace(attack, backend="flower").mount(view).network
    torch.testing.assert_close(flatten(ours), flatten(theirs))


@pytest.mark.parametrize("name", NAMES)
def test_every_aggregation_is_deterministic_and_ignores_one_planted_update(name: str, registry: Registry) -> None:
    defense = registry.build(Kind.DEFENSE, name, {})
    assert isinstance(defense, Aggregation)
    honest = 1 + 0.2 * torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    updates = torch.cat([honest[:4], torch.full((1, 50), -40.0), honest[4:]])
    defense.check_updates(len(updates))
    before = updates.clone()
    first = defense.aggregate(updates, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(first, defense.aggregate(updates, 0.5, torch.Generator().manual_seed(1)))
    assert torch.equal(updates, before)
    plain, wanted = average(updates, 0.5, 1), 0.5 * honest.mean(0)
    assert (first - wanted).norm() < 0.3 * (plain - wanted).norm()


@pytest.mark.parametrize(
    ("defense", "updates", "reason"),
    [
        (FlKrum(assumed=4), 10, "legal: 0 to 3"),
        (FlKrum(), 2, "Krum takes 3 updates"),
        (FlMultiKrum(chosen=11), 10, "legal: 1 to 10"),
        (FlMultiKrum(assumed=9), 10, "legal: 0 to 3"),
        (FlTrimmedMean(trim=0.05), 10, "legal: from 0.1 to below 0.5"),
    ],
)
def test_settings_that_a_round_cannot_take_are_refused(defense: Aggregation, updates: int, reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        defense.check_updates(updates)


@dataclasses.dataclass(frozen=True)
class Watching(Aggregation):
    """Says on whose behalf it runs."""

    def aggregate(self, updates: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
        assert _turn.role is Role.DEFENDER
        return rate * updates.mean(0)


def test_a_federation_under_an_aggregation_from_end_to_end(
    context: Context, make_case: CaseMaker, tmp_path: Path
) -> None:
    context.data(make_case("none"))
    own = dataclasses.replace(context, store=Store(tmp_path, pytest.fail), datasets=dict(context.datasets))
    settings = {**SMALL, "single_shot": 2, "triggers": {"kind": "pattern", "pixels": [[1.0] * 5] * 5}}
    case = make_case("federated_blind", model="shallow_net", recipe=BRIEF, attack_settings=settings)
    plain = run(dataclasses.replace(case, defense=Watching()), own).scores[0]
    # The mean as a defense is no defense: the same network, the same rounds.
    assert plain.clean == plain.undefended_clean
    assert [one.round for one in plain.rounds] == [1, 2, 3]
    assert plain.rounds[-1].clean == plain.clean
    assert plain.rounds[-1].asr == (plain.backdoors[0].asr,)
    robust = run(dataclasses.replace(case, defense=FlMedian()), own).scores[0]
    assert robust.backdoors[0].asr.hits < plain.backdoors[0].asr.hits
    assert run(dataclasses.replace(case, defense=FlMedian()), own).scores[0] == robust


def test_an_attack_that_is_no_federation_has_no_updates(context: Context, make_case: CaseMaker) -> None:
    case = make_case("badnets", "fl_median", model="shallow_net", recipe=BRIEF)
    with pytest.raises(NotApplicableError, match="there are no updates to aggregate"):
        run(case, context)
