"""Traps T16 to T19, of detectors and baselines: each check holds on the real code, and fails with the fault planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gauntlet.scoring
import gauntlet.screening
from gauntlet import evaluation
from gauntlet.defending import defender_view
from gauntlet.defense import InputDetector, Stage
from gauntlet.expansion import cells
from gauntlet.mounting import mount
from gauntlet.pipeline import Context, run, tools_for
from gauntlet.records import Counts
from gauntlet.registry import Registry
from gauntlet.screening import screen_of
from gauntlet.suite import read_suite
from tests.sample_cases import CaseMaker

SUITES = sorted((Path(__file__).parents[1] / "bench").glob("*.toml"))
Check = Callable[[Context, CaseMaker], None]
Plant = Callable[[pytest.MonkeyPatch], None]


def check_t16(_context: Context, _make_case: CaseMaker) -> None:
    """Wrong confusion: the counts of each class are those of a loop over the images."""
    draw = torch.Generator().manual_seed(3)
    labels, predicted = (torch.randint(0, 4, (97,), generator=draw) for _ in range(2))
    found = evaluation.count_by_class(predicted == labels, labels, 4)
    for value in range(4):
        members = [row for row in range(97) if labels[row] == value]
        assert found[value] == Counts(hits=sum(int(predicted[row]) == value for row in members), n=len(members))


def check_t17(context: Context, make_case: CaseMaker) -> None:
    """A threshold that knows the poison: it keeps its rate on the clean reserve, whatever the attack does."""
    for attack in ("badnets", "none"):
        case = make_case(attack, "strip", defense_settings={"blends": 20, "false_positive_rate": 0.1})
        tools = tools_for(case, 0, context)
        mounted = mount(case.attack, tools).value
        assert isinstance(case.defense, InputDetector)
        view = defender_view(case.defense, case.attack, mounted, mounted.network, 100, tools)
        screen = screen_of(case.defense, view)
        scores = screen.scores(view.reserve.images(slice(20, 100)))
        assert screen.limit in scores.tolist()
        assert int((scores > screen.limit).sum()) == 8


def check_t18(context: Context, make_case: CaseMaker) -> None:
    """No clean model or input met: false alarms are counted on every test image, of poisoned and of clean models."""
    for attack in ("badnets", "none"):
        case = make_case(attack, "strip", defense_settings={"blends": 20})
        (score,) = run(case, context).scores
        assert score.detector is not None
        assert score.detector.clean.n == score.clean.n == context.data(case).facts.test_size


def check_t19(_context: Context, _make_case: CaseMaker) -> None:
    """A weak baseline: where a suite has repairs, plain fine-tuning with the same clean images stands beside them."""
    registry = Registry.discover()
    for file in SUITES:
        suite = read_suite(file)
        found = cells(suite, registry)
        repairs = {cell.subject.defense[0] for cell in found if cell.defense.stage is Stage.REPAIR}
        assert not repairs or "fine_tuning" in repairs, file.name


def _columns_for_rows(hits: Tensor, labels: Tensor, classes: int) -> tuple[Counts, ...]:
    members = torch.bincount(labels, minlength=classes).tolist()
    return tuple(Counts(hits=min(int(hits.sum()) // classes, n), n=n) for n in members)


def _always_half(clean: Tensor, rate: float) -> float:
    return float(clean.median())


def _nothing_counted(_scores: Tensor, _limit: float) -> Counts:
    return Counts(hits=0, n=0)


def _no_fine_tuning(patch: pytest.MonkeyPatch) -> None:
    real = read_suite

    def read(file: Path) -> object:
        suite = real(file)
        kept = tuple(entry for entry in suite.defenses if entry.name != "fine_tuning")
        return suite.model_copy(update={"defenses": kept or suite.defenses})

    patch.setattr("test_detector_traps.read_suite", read)


TRAPS: dict[str, tuple[Check, Plant]] = {
    "T16": (check_t16, lambda patch: patch.setattr(evaluation, "count_by_class", _columns_for_rows)),
    "T17": (check_t17, lambda patch: patch.setattr(gauntlet.screening, "threshold", _always_half)),
    "T18": (
        check_t18,
        lambda patch: patch.setattr(gauntlet.scoring, "above", lambda _scores, _limit: Counts(hits=0, n=0)),
    ),
    "T19": (check_t19, _no_fine_tuning),
}


@pytest.mark.parametrize("number", TRAPS)
def test_the_trap_is_not_here(number: str, context: Context, make_case: CaseMaker) -> None:
    TRAPS[number][0](context, make_case)


@pytest.mark.parametrize("number", TRAPS)
def test_the_check_finds_the_planted_trap(
    number: str, context: Context, make_case: CaseMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dataclasses import replace

    from gauntlet.store import Store

    check, plant = TRAPS[number]
    own = replace(context, store=Store(tmp_path, pytest.fail), datasets=dict(context.datasets))
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(own, make_case)
