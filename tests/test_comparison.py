from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gauntlet.cli import main
from gauntlet.comparison import compare
from gauntlet.records import Gate, Record, Status
from gauntlet.results import ResultsWriter
from tests.sample_records import record, sample

ID = "digits-simple_cnn-badnets-fine_tuning"


def case(
    asr: Sequence[float] = (0.05,), clean: float | None = 0.97, gate: Gate | None = None, **more: object
) -> Record:
    """A defended case; of a repair unless `more` says otherwise."""
    made = record("badnets", "fine_tuning", **{"stage": "repair", "asr": asr, "clean": clean, **more})  # type: ignore[arg-type]
    return made if gate is None else made.model_copy(update={"gate": gate})


def worse(old: Record, new: Record) -> tuple[str, ...]:
    return compare([old], [new]).worse.get(ID, ())


def test_a_run_is_no_worse_than_itself() -> None:
    found = compare(sample(), sample())
    assert found.worse == {}
    assert len(found.common) == len(sample())
    assert found.text().endswith(f"\n\n0 worse of {len(sample())} cases in both runs, 0 appeared, 0 vanished\n")
    assert "->" not in found.text()


def test_statuses_from_the_best_to_the_worst() -> None:
    order = ["pass", "marginal", "fail", "attack-failed", "collapsed", "not-applicable", "not-run", "error"]
    assert sorted(order) == sorted(Status)
    for place, status in enumerate(order):
        found = [name for name in order if worse(case(status=Status(status)), case(status=Status(name)))]
        assert found == order[place + 1 :]


def test_a_status_that_worsened_says_why() -> None:
    new = case(status=Status.FAIL, reason="ASR 0.93 > max 0.20", expected="known")
    assert worse(case(), new) == ("pass -> fail, expected: ASR 0.93 > max 0.20",)
    assert worse(case(), case(clean=None, status=Status.ERROR, reason="it broke")) == ("pass -> error: it broke",)
    assert worse(new, case()) == ()


def test_clean_accuracy_is_worse_when_its_interval_lies_below() -> None:
    assert worse(case(clean=0.97), case(clean=0.965)) == ()
    assert worse(case(clean=0.90), case(clean=0.97)) == ()
    assert worse(case(clean=0.97), case(clean=0.90)) == ("clean accuracy 97.0 [96.0, 97.8] -> 90.0 [88.3, 91.5]",)


@pytest.mark.parametrize(
    ("stage", "gate", "rise", "fall"),
    [
        ("repair", Gate(), True, False),
        ("repair", Gate(max_asr=0.2), True, False),
        ("repair", Gate(min_asr=0.2), False, True),
        ("reference", Gate(min_asr=0.9), False, True),
        ("reference", Gate(max_asr=0.05), True, False),
        ("reference", Gate(min_asr=0.1, max_asr=0.9), True, True),
        ("reference", Gate(min_clean_accuracy=0.9), False, False),
    ],
)
def test_the_gate_says_on_which_side_asr_is_worse(stage: str, gate: Gate, rise: bool, fall: bool) -> None:
    low, high = (case((asr,), stage=stage, gate=gate) for asr in (0.3, 0.5))
    near = case((0.32,), stage=stage, gate=gate)
    assert worse(low, near) == worse(near, low) == ()
    assert (bool(worse(low, high)), bool(worse(high, low))) == (rise, fall)


def test_each_backdoor_is_compared_with_itself() -> None:
    found = worse(case((0.9, 0.1)), case((0.9, 0.6)))
    assert len(found) == 1
    assert found[0].startswith("ASR of second 10.0 [")


def test_the_text_shows_every_case_of_either_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone, fresh = record("badnets", "gone"), record("badnets", "fresh")
    other = case((0.5,), clean=0.96, status=Status.FAIL, reason="too much")
    other = other.model_copy(update={"provenance": other.provenance.model_copy(update={"task_hash": "0" * 64})})
    for name, records in (("old", [case(), gone]), ("new", [fresh, other])):
        writer = ResultsWriter(tmp_path / name, pytest.fail)
        for each in records:
            writer.append(each)
    assert main(["compare", str(tmp_path / "old"), str(tmp_path / "new")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines[2:5]] == [
        "digits-simple_cnn-badnets-fresh – -> pass – -> 97.8 – -> 99.8",
        f"{ID} pass -> fail 97.0 -> 96.0 5.0 -> 50.0",
        "digits-simple_cnn-badnets-gone pass -> – 97.8 -> – 99.8 -> –",
    ]
    assert lines[6:9] == [
        "other data than before: digits",
        f"worse: {ID}: pass -> fail: too much",
        f"worse: {ID}: ASR 5.0 [3.9, 6.4] -> 50.0 [47.2, 52.8]",
    ]
    assert lines[9:] == [
        "appeared: digits-simple_cnn-badnets-fresh",
        "vanished: digits-simple_cnn-badnets-gone",
        "1 worse of 1 case in both runs, 1 appeared, 1 vanished",
    ]
    assert main(["compare", str(tmp_path / "old"), str(tmp_path / "old")]) == 0


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, defense in (("old", "one"), ("new", "two")):
        ResultsWriter(tmp_path / name, pytest.fail).append(record("badnets", defense))
    for new, message in (("new", "no case in common: digits-simple_cnn-badnets-one, ..."), ("none", "records.jsonl")):
        assert main(["compare", str(tmp_path / "old"), str(tmp_path / new)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
