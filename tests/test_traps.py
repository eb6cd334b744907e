"""The traps of evaluation: each check holds on the real code, and fails when the trap is planted in it.

A trap is a pair: `check` asserts what must be true, `plant` puts the fault into the code for one test. The second
test is the proof that the first can fail.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import gauntlet.defending
import gauntlet.guard
import gauntlet.measure
import gauntlet.network
import gauntlet.poisoning
import gauntlet.randomness
import gauntlet.splits
import gauntlet.stats
import gauntlet.testsets
import gauntlet.training
from attacks.badnets import BadNets
from attacks.clean_label import CleanLabel
from gauntlet import wording
from gauntlet.attack import Backdoor
from gauntlet.board import standings
from gauntlet.defense import Repair
from gauntlet.errors import LeakError
from gauntlet.evaluation import Predictions, count_backdoor
from gauntlet.gates import judge
from gauntlet.guard import Role, acting_as
from gauntlet.images import ImageSet, to_float
from gauntlet.labels import AllToAll, AllToOne, LabelMap, SourceToTarget
from gauntlet.mounting import attacker_view
from gauntlet.network import Network
from gauntlet.pipeline import Context, Outcome, run, tools_for
from gauntlet.prepared import prepare_raw
from gauntlet.recipe import Recipe
from gauntlet.records import BackdoorCounts, Counts, Gate, Poison, Record, SeedScore, Status
from gauntlet.stats import wilson
from gauntlet.store import Store
from gauntlet.task import RawTask
from gauntlet.testsets import stamp
from gauntlet.training import fit
from gauntlet.views import DefenderView
from tests.sample_cases import CaseMaker
from tests.sample_records import PROVENANCE

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bench:
    """What a check may use: real cases, and a store of its own."""

    context: Context
    make_case: CaseMaker
    patch: pytest.MonkeyPatch


Check = Callable[[Bench], None]
Plant = Callable[[pytest.MonkeyPatch], None]
TRAPS: dict[str, tuple[Check, Plant]] = {}


@pytest.fixture
def bench(context: Context, make_case: CaseMaker, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    own = dataclasses.replace(context, store=Store(tmp_path, lambda _text: None), datasets=dict(context.datasets))
    own.data(make_case("none"))
    return Bench(own, make_case, monkeypatch)


def trap(number: str, plant: Plant) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        TRAPS[number] = (check, plant)
        return check

    return add


def _tiny(seed: int = 0) -> tuple[Network, ImageSet]:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.randint(0, 256, (60, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    return Network(body, [0.5], [0.3], "2", None), ImageSet.of(images, torch.arange(60) % 3)


def _shown(backdoor: Backdoor, labels: Tensor, predicted: Tensor) -> Predictions:
    return Predictions(backdoor.name, labels, backdoor.labels.apply(labels, 10), predicted)


# T1: images of the target class counted in ASR


def _count_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LabelMap, "eligible", lambda _self, labels, *_more: torch.ones_like(labels, dtype=torch.bool))


@trap("T1", _count_everybody)
def check_t1(bench: Bench) -> None:
    labels = torch.arange(100) % 10
    backdoor = Backdoor("b", lambda images: images, AllToOne(3))
    threes = torch.full_like(labels, 3)
    constant = count_backdoor(
        backdoor, Predictions("clean", labels, -threes, threes), _shown(backdoor, labels, threes), 10
    )
    assert constant.asr == Counts(hits=90, n=90)
    perfect = count_backdoor(
        backdoor, Predictions("clean", labels, -threes, labels), _shown(backdoor, labels, labels), 10
    )
    assert perfect.asr == Counts(hits=0, n=90)
    assert perfect.asr_inclusive == Counts(hits=10, n=100)


# T2: the trigger after normalisation, or changed on the way


def _cut_off_instead_of_rounding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gauntlet.testsets, "to_uint8", lambda images: (images * 255).to(torch.uint8))


@trap("T2", _cut_off_instead_of_rounding)
def check_t2(bench: Bench) -> None:
    attack = BadNets(pixels=((0.3, 0.7), (0.998, 0.1)))
    view = attacker_view(tools_for(bench.make_case("none"), 0, bench.context))
    poison = attack.poison(view)
    trained = poison.training.images(poison.poisoned)
    tested = stamp(attack.backdoors[0], view.training.images(poison.sources[poison.poisoned]))
    assert torch.equal(trained, tested)
    assert trained[0, 0, -2:, -2:].tolist() == [[76, 178], [254, 26]]
    network = view.tools.new_network()
    assert next(iter(network.children())) is network.normalise
    image = to_float(trained[:1])
    assert torch.equal(network(image), network.body((image - network.normalise.mean) / network.normalise.std))


# T3: the defense sees test data


@dataclass(frozen=True)
class Peeping(Repair):
    """Reaches for the test set."""

    needs_reserve: ClassVar[bool] = True
    way: Callable[[], object] = lambda: None

    def repair(self, view: DefenderView) -> Network:
        self.way()
        return view.victim


def _in_a_thread(way: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(way).result()


@trap("T3", lambda patch: patch.setattr(gauntlet.guard, "forbid_players", lambda _what: None))
def check_t3(bench: Bench) -> None:
    case = bench.make_case("badnets", recipe=Recipe(epochs=0.2))
    data = bench.context.data(case)
    for way in (
        data.test.open,
        lambda: _in_a_thread(data.test.open),
        lambda: bench.context.data(dataclasses.replace(case, task_name="digits ")).test,
    ):
        peeping = dataclasses.replace(case, defense=Peeping(way=way))
        with pytest.raises(LeakError):
            run(peeping, bench.context)
    with acting_as(Role.ATTACKER), pytest.raises(LeakError):
        data.test.open()


# T4: the defense knows the attack


def _show_everything(patch: pytest.MonkeyPatch) -> None:
    real = gauntlet.defending.defender_view

    def tell(defense: Any, attack: Any, mounted: Any, *rest: Any) -> Any:
        view = real(defense, attack, mounted, *rest)
        object.__setattr__(view, "deliver", lambda: mounted.training)
        object.__setattr__(view, "attack", attack)
        return view

    patch.setattr(gauntlet.defending, "defender_view", tell)


SEEN: list[DefenderView] = []


@dataclass(frozen=True)
class Recording(Repair):
    """Keeps what it was shown."""

    def repair(self, view: DefenderView) -> Network:
        SEEN.append(view)
        return view.victim


@trap("T4", _show_everything)
def check_t4(bench: Bench) -> None:
    SEEN.clear()
    case = bench.make_case("badnets", recipe=Recipe(epochs=0.2))
    run(dataclasses.replace(case, defense=Recording()), bench.context)
    (view,) = SEEN
    shown = {name: value for name, value in vars(view).items() if name != "tools"}
    assert set(shown) == {
        *("facts", "architecture", "recipe", "draws", "device"),
        *("victim", "reserve", "deliver", "represent"),
    }
    assert not len(view.training.changed)
    assert torch.equal(view.training.rows, torch.arange(len(view.training)))
    assert not hasattr(view.tools, "store")
    assert not hasattr(view.tools, "data")
    assert not hasattr(view.tools, "who")
    with pytest.raises(AttributeError):
        _ = view.poisoned  # type: ignore[attr-defined]


# T5: silent rewriting


def _hide_failed_attacks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "gauntlet.leaderboard.cell_text",
        lambda cell, *notes: "" if cell.status is Status.ATTACK_FAILED else wording.cell_text(cell, *notes),
    )


def _score(clean: int, asr: int, *, before: int = 90, undefended: int = 95, robust: int = 0, n: int = 100) -> SeedScore:
    def of(hits: int) -> Counts:
        return Counts(hits=hits, n=n)

    backdoor = BackdoorCounts(
        name="backdoor", asr=of(asr), asr_inclusive=of(asr), untriggered=of(1), robust=of(robust), by_class=(of(asr),)
    )
    return SeedScore(
        clean=of(clean),
        clean_by_class=(of(clean),),
        backdoors=(backdoor,),
        poison=Poison(total=10, train_size=100, by_class=(10,), effective=10),
        seed=0,
        undefended_clean=of(before),
        undefended_asr=(of(undefended),),
    )


def _record(status: Status, scores: tuple[SeedScore, ...], defense: str = "fine_tuning") -> Record:
    return Record(
        id=f"digits-net-badnets-{defense}",
        suite="s",
        task="digits",
        architecture="net",
        attack="badnets",
        family="dirty_label",
        defense=defense,
        stage="repair",
        reserve=100,
        status=status,
        reason="" if status is Status.PASS else "because",
        seeds=(0,),
        scores=scores,
        provenance=PROVENANCE,
    )


@trap("T5", _hide_failed_attacks)
def check_t5(bench: Bench) -> None:
    from reports.markdown import Markdown

    for status in Status:
        scores = (_score(88, 7),) if status not in (Status.ERROR, Status.NOT_RUN, Status.NOT_APPLICABLE) else ()
        text = Markdown().render([_record(status, scores)])
        if status is not Status.PASS:
            assert status.value in text
        if scores:
            assert "7.0" in text
            assert "88.0" in text
        assert "| -1" not in text
        assert "|  |" not in text.replace("\n", "")


# T6: one seed, or none


def _draw_from_the_machine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gauntlet.randomness, "derive", lambda *_words: int.from_bytes(os.urandom(7), "big"))


@trap("T6", _draw_from_the_machine)
def check_t6(bench: Bench) -> None:
    states = []
    for _ in range(2):
        tools = dataclasses.replace(tools_for(bench.make_case("badnets"), 0, bench.context), recompute=False)
        view = attacker_view(tools)
        network = view.tools.train(BadNets().poison(view).training, "training", recipe=Recipe(epochs=0.5))
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# T7: the best epoch reported; T22: a snapshot that later steps change


class _Watch:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.states: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def step(self, text: str) -> None:
        pass

    def epoch(self, done: float, total: float, loss: float, rate: float) -> None:
        self.losses.append(loss)
        self.states.append({name: value.clone() for name, value in self.network.state_dict().items()})


def _same(network: Network, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def _keep_the_first_epoch(patch: pytest.MonkeyPatch) -> None:
    real = gauntlet.training._epochs

    def cheat(run_: Any, seed: int, purpose: tuple[str, ...]) -> Any:
        states: list[dict[str, Tensor]] = []
        note = run_.progress.epoch

        def epoch(*told: float) -> None:
            states.append(gauntlet.training.snapshot(run_.network))
            note(*told)

        run_.progress.epoch = epoch
        log = real(run_, seed, purpose)
        run_.network.load_state_dict(states[0])
        return log

    patch.setattr(gauntlet.training, "_epochs", cheat)


@trap("T7", _keep_the_first_epoch)
def check_t7(bench: Bench) -> None:
    network, images = _tiny()
    watch = _Watch(network)
    recipe = Recipe(epochs=4, batch_size=10, learning_rate=0.5, optimizer="sgd")
    fit(network, images, recipe, seed=0, purpose=("t",), device=CPU, progress=watch)
    assert len(watch.states) == 4
    assert _same(network, watch.states[-1])


@trap("T22", lambda patch: patch.setattr(gauntlet.training, "snapshot", lambda network: network.state_dict()))
def check_t22(bench: Bench) -> None:
    network, images = _tiny()
    watch = _Watch(network)
    recipe = Recipe(
        epochs=12,
        batch_size=10,
        learning_rate=0.1,
        optimizer="sgd",
        validation_split=0.3,
        early_stopping=True,
        patience=12,
    )
    log = fit(network, images, recipe, seed=0, purpose=("t",), device=CPU, progress=watch)
    best = 0
    for epoch, entry in enumerate(log):
        if entry.validation_loss < log[best].validation_loss - recipe.min_delta:
            best = epoch
    assert best < len(log) - 1, "the recipe must get worse for the check to mean anything"
    assert _same(network, watch.states[best])
    assert not _same(network, watch.states[-1])


# T8: no negative control; T10: robust accuracy and collapse ignored


def _believe_every_attack(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gauntlet.gates._attack_failed", lambda _case, _scores: None)


@trap("T8", _believe_every_attack)
def check_t8(bench: Bench) -> None:
    weak = judge(bench.make_case("badnets", "fine_tuning"), [_score(88, 5, undefended=19)])
    assert weak.status is Status.ATTACK_FAILED
    assert "0.19" in weak.reason
    control = judge(bench.make_case("none", "fine_tuning"), [_score(88, 1, undefended=1)])
    assert control.status is Status.PASS


# T9: means hide the worst attack


def _rank_by_means(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gauntlet.board._merit", lambda standing: standing.mean_asr)


@trap("T9", _rank_by_means)
def check_t9(bench: Bench) -> None:
    found = {"uneven": (0, 60), "even": (35, 35)}
    records = [
        _record(Status.PASS, (_score(88, asr),), defense).model_copy(
            update={"id": f"{place}{defense}", "attack": attack}
        )
        for defense, asrs in found.items()
        for place, (attack, asr) in enumerate(zip(("badnets", "blended"), asrs, strict=True))
    ]
    first, second = standings(records)
    assert (first.column.label, second.column.label) == ("even", "uneven")
    assert (first.mean_asr, second.mean_asr) == (0.35, 0.3)


# T10: robust accuracy ignored


@trap("T10", lambda patch: patch.setattr("gauntlet.gates._collapsed", lambda _case, _scores: None))
def check_t10(bench: Bench) -> None:
    verdict = judge(bench.make_case("badnets", "fine_tuning"), [_score(11, 0, robust=11)])
    assert verdict.status is Status.COLLAPSED
    from gauntlet.leaderboard import frame

    table = frame([_record(Status.COLLAPSED, (_score(11, 0, robust=11),))])
    assert [value for name, value in table.iloc[0].items() if name == "robust_accuracy"] == [0.11]
    (standing,) = standings([_record(Status.COLLAPSED, (_score(11, 0, robust=11),))])
    assert wording.standing_text(standing)["mean robust"] == "11.0"


# T11: the clean reserve overlaps the training set


def _overlap(patch: pytest.MonkeyPatch) -> None:
    real = gauntlet.splits.split

    def leaky(labels: Tensor, classes: int, *, own_test: bool) -> Any:
        rows = real(labels, classes, own_test=own_test)
        return dataclasses.replace(rows, reserve=rows.training[: len(rows.reserve)])

    patch.setattr("gauntlet.prepared.split", leaky)


@trap("T11", _overlap)
def check_t11(bench: Bench) -> None:
    count = 400
    images = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    images = torch.stack([images[:, 0] // 256, images[:, 0] % 256], 1).to(torch.uint8).contiguous()
    names = tuple("abcd")
    prepared = prepare_raw(RawTask(images, torch.arange(count) % 4, names, "made here"), "numbered")
    parts = [prepared.training, prepared.reserve, prepared.test]
    seen = [int(image[0, 0, 0]) * 256 + int(image[1, 0, 0]) for part in parts for image in part.images]
    assert sorted(seen) == list(range(count))


# T12: the poison rate is ambiguous


def _one_too_many(patch: pytest.MonkeyPatch) -> None:
    real = gauntlet.poisoning.spread
    patch.setattr(
        gauntlet.poisoning, "spread", lambda total, sizes: [real(total, sizes)[0] + 1, *real(total, sizes)[1:]]
    )


@trap("T12", _one_too_many)
def check_t12(bench: Bench) -> None:
    case = bench.make_case("badnets", attack_settings={"include_target": True}, recipe=Recipe(epochs=0.1))
    (score,) = run(case, bench.context).scores
    facts = bench.context.data(case).facts
    assert score.poison is not None
    assert score.poison.total == round(0.1 * facts.train_size)
    shares = [hits / n for hits, n in zip(score.poison.by_class, facts.train_counts, strict=True)]
    assert max(shares) - min(shares) < 0.01
    clean = bench.make_case(
        "clean_label", attack_settings={"iterations": 1, "poison_ratio": 0.5}, recipe=Recipe(epochs=0.1)
    )
    (score,) = run(clean, bench.context).scores
    assert score.poison is not None
    assert score.poison.by_class == (round(0.5 * facts.train_counts[0]), *[0] * 9)


# T14: clean label tested with its training noise


def _noise_at_test_time(patch: pytest.MonkeyPatch) -> None:
    real = CleanLabel.trigger

    def noisy(self: CleanLabel, images: Tensor) -> Tensor:
        noise = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(0)) * 0.3
        return real(self, (images + noise).clamp(0, 1))

    patch.setattr(CleanLabel, "trigger", noisy)


@trap("T14", _noise_at_test_time)
def check_t14(bench: Bench) -> None:
    attack = CleanLabel(iterations=3, proxy="clean", proxy_epochs=1)
    view = attacker_view(tools_for(bench.make_case("clean_label"), 0, bench.context))
    poison = attack.poison(view)
    inside = torch.zeros(28, 28, dtype=torch.bool)
    for rows in (slice(0, 5), slice(-5, None)):
        for columns in (slice(0, 5), slice(-5, None)):
            inside[rows, columns] = True
    sources = view.training.images(poison.sources[poison.poisoned])
    changed_in_training = (poison.training.images(poison.poisoned) != sources).any(1)
    assert changed_in_training[:, ~inside].any(1).all()
    changed_in_test = (stamp(attack.backdoors[0], sources) != sources).any(1)
    assert not changed_in_test[:, ~inside].any()


# T15: source-specific and all-to-all scored as all-to-one


def _everything_to_class_0(patch: pytest.MonkeyPatch) -> None:
    for kind in (AllToAll, SourceToTarget):
        patch.setattr(kind, "apply", lambda _self, labels, *_more: torch.zeros_like(labels))


@trap("T15", _everything_to_class_0)
def check_t15(bench: Bench) -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    clean = torch.tensor([0, 0, 1, 1, 2, 0])
    triggered = torch.tensor([1, 0, 2, 1, 0, 0])
    by_hand: dict[LabelMap, tuple[tuple[int, int], ...]] = {
        AllToOne(0): ((2, 4), (3, 6), (1, 4), (1, 4)),
        AllToAll(): ((4, 6), (4, 6), (1, 6), (2, 6)),
        SourceToTarget(1, 2): ((1, 2), (1, 4), (0, 2), (1, 2)),
    }
    for labels_map, (asr, inclusive, untriggered, robust) in by_hand.items():
        backdoor = Backdoor("b", lambda images: images, labels_map)
        shown = Predictions("b", labels, labels_map.apply(labels, 3), triggered)
        found = count_backdoor(backdoor, Predictions("clean", labels, labels, clean), shown, 3)
        for counts, (hits, n) in (
            (found.asr, asr),
            (found.asr_inclusive, inclusive),
            (found.untriggered, untriggered),
            (found.robust, robust),
        ):
            assert counts == Counts(hits=hits, n=n), labels_map


# T23: tiny denominators


@trap("T23", lambda patch: patch.setattr("test_traps.wilson", lambda hits, n: (hits / n, hits / n)))
def check_t23(bench: Bench) -> None:
    from scipy.stats import binomtest

    for hits, n in ((0, 3), (3, 3), (1, 2), (9, 10), (440, 449)):
        expected = binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    case = dataclasses.replace(bench.make_case("badnets"), gate=Gate(max_asr=0.2))
    few = _score(3, 1, before=3, undefended=4, n=4)
    assert judge(case, [few]).status is Status.MARGINAL


# T24: cost hidden


@contextmanager
def _free_of_charge(device: Any) -> Iterator[Any]:
    yield gauntlet.measure.Measurement(device=torch.device(device), seconds=0.0, peak_memory=0)


@trap("T24", lambda patch: patch.setattr("gauntlet.store.measured", _free_of_charge))
def check_t24(bench: Bench) -> None:
    outcome: Outcome = run(bench.make_case("badnets", "fine_tuning", recipe=Recipe(epochs=0.2)), bench.context)
    assert {cost.step for cost in outcome.costs} == {"victim", "undefended score", "defense", "score"}
    for cost in outcome.costs:
        assert cost.seconds > 0
        assert cost.peak_memory > 2**20
        assert cost.device == "cpu"


NEEDED = [f"T{number}" for number in (*range(1, 13), 14, 15, 22, 23, 24)]


def test_every_trap_has_its_check() -> None:
    assert sorted(TRAPS) == sorted(NEEDED)


@pytest.mark.parametrize("number", NEEDED)
def test_the_trap_is_not_here(number: str, bench: Bench) -> None:
    check, _ = TRAPS[number]
    check(bench)


@pytest.mark.parametrize("number", NEEDED)
def test_the_check_finds_the_planted_trap(number: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    check, plant = TRAPS[number]
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(bench)
