from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gauntlet import entry
from gauntlet.costs import Basis, Costs, StepCost, forward_flops
from gauntlet.pipeline import Context, Step
from gauntlet.plan import Plan, Planned, choose, plan_text
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.settings import values
from gauntlet.store import Store
from gauntlet.task import LoadContext
from gauntlet.toolbox import describe
from tests.sample_scores import REGISTRY, case, facts


class Text:
    """Stores a string."""

    def save(self, value: str, folder: Path) -> None:
        (folder / "text").write_text(value)

    def load(self, folder: Path) -> str:
        return (folder / "text").read_text()


def silent(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Store(tmp_path / "store", silent), REGISTRY, torch.device("cpu"), LoadContext(tmp_path))


def costs(context: Context) -> Costs:
    return Costs(context, {"digits": facts()})


def victim_spec(attack: str = "badnets", epochs: float = 1.0) -> dict[str, object]:
    of = case(attack)
    return {
        "task": facts().hash,
        "device": "cpu",
        "architecture": describe(of.architecture),
        "attack": describe(of.attack),
        "recipe": {"epochs": epochs},
    }


def remember(
    context: Context, kind: str, number: int, spec: Mapping[str, object], inner: Callable[[], object] = str
) -> str:
    """Puts an entry into the store that took (nearly) no time; its seconds are what `seconds` then says."""
    key = f"{number:064x}"

    def make() -> str:
        inner()
        return "made"

    context.store.obtain(kind, key, spec, Text(), make)
    return key


def rewrite(context: Context, kind: str, key: str, **changes: object) -> None:
    """Changes what an entry says of itself."""
    folder = context.store.folder(kind, key)
    entry.write(folder, entry.read(folder, kind, key).model_copy(update=changes))


def seconds(context: Context, kind: str, key: str) -> float:
    found = context.store.glance(kind, key)
    assert found is not None
    return found.seconds


def test_flops_of_a_network_counted_by_hand() -> None:
    network = REGISTRY.build(Kind.MODEL, "shallow_net", {})
    assert forward_flops(network, facts()) == 2 * (784 * 32 + 32 * 10)


def test_a_step_that_is_there_costs_nothing(context: Context) -> None:
    key = remember(context, "victim", 1, victim_spec())
    assert costs(context).of(Step("victim", key, 0), case()) == StepCost(Step("victim", key, 0), 0.0, Basis.CACHED)


def test_recompute_counts_nothing_as_there(context: Context, tmp_path: Path) -> None:
    key = remember(context, "victim", 1, victim_spec())
    anew = Context(context.store, REGISTRY, torch.device("cpu"), LoadContext(tmp_path), recompute=True)
    assert costs(anew).of(Step("victim", key, 0), case()).basis is Basis.MEASURED


def test_the_same_step_measured_before_is_scaled_by_epochs(context: Context) -> None:
    key = remember(context, "victim", 1, victim_spec(epochs=0.5))
    found = costs(context).of(Step("victim", "f" * 64, 0), case())
    assert found.basis is Basis.MEASURED
    assert found.seconds == pytest.approx(2 * seconds(context, "victim", key))


def test_a_similar_step_is_scaled_by_the_work_of_both(context: Context) -> None:
    key = remember(context, "victim", 1, victim_spec("badnets"))
    of = case("clean_label")
    found = costs(context).of(Step("victim", "f" * 64, 0), of)
    assert found.basis is Basis.SIMILAR
    assert found.seconds == pytest.approx(of.attack.cost * seconds(context, "victim", key))


def test_a_defense_is_estimated_from_victims_while_none_was_measured(context: Context) -> None:
    key = remember(context, "victim", 1, victim_spec())
    of = case(defense="fine_tuning")
    found = costs(context).of(Step("defended", "f" * 64, 0), of)
    assert found.basis is Basis.SIMILAR
    assert found.seconds == pytest.approx(of.defense.cost * seconds(context, "victim", key))


def test_other_tasks_and_architectures_teach_nothing(context: Context) -> None:
    remember(context, "victim", 1, {**victim_spec(), "task": "1" * 64})
    remember(context, "victim", 2, {**victim_spec(), "architecture": {"name": "le_net"}})
    remember(context, "victim", 3, {**victim_spec(), "device": "cuda"})
    assert costs(context).of(Step("victim", "f" * 64, 0), case()).basis is Basis.ARITHMETIC


def test_defenses_and_scores_are_found_through_their_victim(context: Context) -> None:
    victim = remember(context, "victim", 1, victim_spec())
    defense = describe(case(defense="fine_tuning").defense)
    defended = remember(context, "defended", 2, {"victim": victim, "defense": defense})
    scored = remember(context, "score", 3, {"network": defended, "attack": {}, "defense": defense})
    remember(context, "score", 4, {"network": "a" * 64, "attack": {}, "defense": None})
    of = case(defense="fine_tuning")
    assert costs(context).of(Step("defended", "f" * 64, 0), of).seconds == seconds(context, "defended", defended)
    assert costs(context).of(Step("score", "f" * 64, 0), of).seconds == seconds(context, "score", scored)
    other = costs(context).of(Step("defended", "f" * 64, 0), case(defense="clean_retrain"))
    assert other.basis is Basis.SIMILAR


@dataclass(frozen=True)
class Watched(Registry):
    """Tells what it was asked for."""

    asked: list[str] = field(default_factory=list)

    def find(self, kind: Kind, name: str) -> type[Any] | None:
        self.asked.append(name)
        return super().find(kind, name)

    def classes(self, kind: Kind) -> dict[str, type[Any]]:
        self.asked.append(f"all {kind}")
        return super().classes(kind)


def test_of_a_full_store_each_plugin_is_looked_up_once(context: Context) -> None:
    for number in range(40):
        spec = victim_spec("badnets") | {"attack": {"name": "gone" if number % 2 else "badnets"}}
        remember(context, "victim", number, spec)
    watched = Watched.discover()
    assert isinstance(watched, Watched)
    estimates = costs(replace(context, registry=watched))
    for number in range(100, 110):
        step = Step("victim", f"{number:064x}", 0)
        assert estimates.of(step, case("clean_label")).basis is Basis.SIMILAR
    assert sorted(watched.asked) == ["badnets", "clean_label", "gone"]


def test_another_machine_teaches_nothing(context: Context) -> None:
    key = remember(context, "victim", 1, victim_spec())
    rewrite(context, "victim", key, machine="Another CPU, cpu")
    assert costs(context).of(Step("victim", "f" * 64, 0), case()).basis is Basis.ARITHMETIC


def test_as_many_threads_teach_most(context: Context) -> None:
    """Those of other numbers of threads serve where there are none."""
    one, two = (remember(context, "victim", number, victim_spec()) for number in (1, 2))
    rewrite(context, "victim", one, threads=1, seconds=10.0)
    rewrite(context, "victim", two, threads=2, seconds=6.0)

    def of(threads: int) -> float:
        return Costs(context, {"digits": facts()}, threads).of(Step("victim", "f" * 64, 0), case()).seconds

    assert [of(1), of(2), of(3)] == [10.0, 6.0, 6.0]


def test_another_torch_serves_where_there_is_none_of_this_one(context: Context) -> None:
    one, two = (remember(context, "victim", number, victim_spec()) for number in (1, 2))
    rewrite(context, "victim", one, versions={"torch": "0.1"}, seconds=10.0)
    of = costs(context).of(Step("victim", "f" * 64, 0), case())
    assert of.seconds == seconds(context, "victim", two)


def test_other_networks_teach_the_machines_pace(context: Context) -> None:
    unknown = costs(context).of(Step("victim", "f" * 64, 0), case())
    recipe = {name: value for name, value in values(case().recipe).items() if name != "milestones"}
    other = REGISTRY.build(Kind.MODEL, "simple_cnn", {})
    spec = victim_spec() | {"architecture": describe(other), "recipe": recipe}
    slow, fast = (remember(context, "victim", number, spec) for number in (1, 2))
    for key, taken in ((slow, 400.0), (fast, 100.0)):
        rewrite(context, "victim", key, seconds=taken)
    learnt = costs(context).of(Step("victim", "f" * 64, 0), case())
    assert learnt.basis is Basis.ARITHMETIC
    assert learnt.seconds > 10 * unknown.seconds
    rewrite(context, "victim", slow, seconds=100.0)
    assert costs(context).of(Step("victim", "f" * 64, 0), case()).seconds == pytest.approx(learnt.seconds / 2.5)


def defend_with_training(context: Context, number: int, victim: str, training: int) -> str:
    """A clean retraining whose own work took 1 s, and the training inside it 20 s where it was made."""
    inside = f"{training:064x}"

    def train() -> None:
        context.store.obtain("training", inside, {}, Text(), lambda: "trained")

    spec = {"victim": victim, "defense": describe(case(defense="clean_retrain").defense)}
    key = remember(context, "defended", number, spec, train)
    rewrite(context, "training", inside, seconds=20.0)
    rewrite(context, "defended", key, seconds=1.0, inner={f"training/{inside}": 0.0})
    return key


def test_a_training_inside_a_defense_counts_although_it_was_loaded(context: Context) -> None:
    victim = remember(context, "victim", 1, victim_spec())
    defend_with_training(context, 2, victim, 3)
    found = costs(context).of(Step("defended", "f" * 64, 0), case(defense="clean_retrain"))
    assert (found.basis, found.seconds, found.training) == (Basis.MEASURED, 1.0, ("f" * 64, 20.0))


def test_a_training_that_two_victims_shared_is_paid_once_a_seed(context: Context) -> None:
    recipe = values(case().recipe)
    for number, attack in ((1, "badnets"), (2, "single_pixel")):
        victim = remember(context, "victim", number, victim_spec(attack) | {"recipe": recipe, "seed": 7})
        defend_with_training(context, 10 + number, victim, 3)
    estimates = costs(context)

    def of(attack: str, key: str, seed: int) -> StepCost:
        return estimates.of(Step("defended", key * 64, seed), case(attack, "clean_retrain"))

    one, two, other = of("badnets", "e", 0), of("single_pixel", "f", 0), of("badnets", "d", 1)
    assert one.training is not None
    assert one.training == two.training
    assert one.training != other.training
    assert of("none", "c", 7).training is None, "that of seed 7 is there"
    plan = Plan(tuple(Planned(case("badnets", "clean_retrain"), (cost,)) for cost in (one, two, other)))
    assert plan.seconds == pytest.approx(3 * 1.0 + 2 * one.training[1])


def test_a_score_is_estimated_by_its_defense(context: Context) -> None:
    victim = remember(context, "victim", 1, victim_spec())
    smoothing = case(defense="spatial_smoothing")
    plain = remember(context, "score", 2, {"network": victim, "attack": {}, "defense": None})
    smoothed = remember(context, "score", 3, {"network": victim, "defense": describe(smoothing.defense)})
    rewrite(context, "score", plain, seconds=1.0)
    rewrite(context, "score", smoothed, seconds=5.0)
    step = Step("score", "f" * 64, 0)
    assert costs(context).of(step, smoothing).seconds == 1.0
    assert costs(context).of(step, smoothing, defended=True).seconds == 5.0
    assert costs(context).of(step, case(defense="fine_tuning"), defended=True).basis is Basis.SIMILAR


def test_arithmetic_grows_with_epochs_and_work(context: Context) -> None:
    small = costs(context).of(Step("victim", "f" * 64, 0), case())
    large = costs(context).of(Step("victim", "f" * 64, 0), case("clean_label"))
    assert 0 < small.seconds < large.seconds


def planned(attack: str, defense: str, **steps: float) -> Planned:
    """Step names to seconds; 0 is a cached step. Steps of one name are one step."""
    parts = [
        StepCost(Step("victim" if name.startswith("v") else "defended", name, 0), cost, basis)
        for name, cost in steps.items()
        for basis in [Basis.ARITHMETIC if cost else Basis.CACHED]
    ]
    return Planned(case(attack, defense), tuple(parts))


PLAN = Plan(
    (
        planned("badnets", "none", v1=10),
        planned("badnets", "fine_tuning", v1=10, f1=5),
        planned("badnets", "clean_retrain", v1=10, c=20),
        planned("single_pixel", "none", v2=10),
        planned("single_pixel", "fine_tuning", v2=10, f2=5),
        planned("single_pixel", "clean_retrain", v2=10, c=20),
        planned("none", "none", v0=10),
        planned("none", "fine_tuning", v0=10, f0=5),
    )
)


def kept(budget: float) -> list[str]:
    return [one.id.removeprefix("digits-shallow_net-") for one in choose(PLAN, budget).kept]


def test_shared_steps_are_paid_once() -> None:
    assert PLAN.seconds == 30 + 15 + 20
    assert len(kept(65)) == 8
    assert len(kept(64.9)) < 8


def test_workers_share_the_victims() -> None:
    assert PLAN.wall(1) == pytest.approx(PLAN.seconds)
    # badnets 35 (it makes the clean retraining), single_pixel 15 and as long as it takes, after either none 15.
    assert PLAN.wall(2) == 50
    assert PLAN.wall(9) == 35


def test_a_worker_that_comes_late_finds_what_another_made() -> None:
    plan = Plan(
        (
            planned("badnets", "clean_retrain", v1=10, c=20),
            planned("single_pixel", "none", v2=40),
            planned("single_pixel", "clean_retrain", v2=40, c=20),
            planned("none", "none", v0=3),
        )
    )
    assert plan.wall(2) == 40
    assert plan.wall(1) == plan.seconds == 73


def test_the_victim_of_most_cases_comes_first() -> None:
    plan = Plan(
        (
            planned("badnets", "none", v1=10),
            planned("single_pixel", "none", v2=10),
            planned("none", "none", v0=1),
            planned("none", "fine_tuning", v0=1, f0=19),
        )
    )
    assert plan.wall(2) == 20


def test_undefended_rows_come_first_and_of_these_the_control() -> None:
    assert kept(10) == ["none-none"]
    assert set(kept(30)) == {"badnets-none", "single_pixel-none", "none-none"}


def test_every_defense_is_tried_once_before_one_is_tried_twice() -> None:
    assert {name.rpartition("-")[2] for name in kept(55)} == {"none", "fine_tuning", "clean_retrain"}
    assert len(kept(55)) == 6, "a retraining that the first case paid for comes free with the second"


def test_what_is_left_out_says_why() -> None:
    choice = choose(PLAN, 10)
    assert len(choice.left_out) + len(choice.kept) == 8
    assert choice.seconds == 10
    assert choice.left_out["digits-shallow_net-badnets-none"] == (
        "left out by the budget of 10.0 s: it would take another 10.0 s"
    )


def test_what_is_cached_is_kept_by_any_budget() -> None:
    plan = Plan((planned("badnets", "fine_tuning", v1=0, f1=0), planned("none", "none", v0=10)))
    assert [one.id for one in choose(plan, 0.001).kept] == ["digits-shallow_net-badnets-fine_tuning"]


def test_the_table() -> None:
    text = plan_text(PLAN, startup=4)
    rows = [line.split() for line in text.splitlines()]
    assert ["digits-shallow_net-badnets-fine_tuning", "0/2", "15.0", "s", "5.00", "s", "arithmetic"] in rows
    assert text.endswith("8 cases, 0 of 3 victims cached, about 65.0 s to go, and 4.00 s to start")
    two = plan_text(PLAN, workers=2, startup=4)
    assert two.endswith("3 victims cached, about 50.0 s to go on 2 workers, and 4.00 s to start")
    chosen = plan_text(PLAN, choose(PLAN, 10), startup=4)
    assert chosen.endswith(
        "8 cases, 0 of 3 victims cached; 1 fit into the budget, about 10.0 s to go, and 4.00 s to start"
    )
    assert chosen.count("left out") == 7


def test_a_budget_for_all_foretells_what_the_plan_does() -> None:
    """On two workers the work is shared out with and without a budget."""
    total, within = (
        plan_text(PLAN, choice, workers=2, startup=4).rpartition("about")[2] for choice in (None, choose(PLAN, 65))
    )
    assert total == within
