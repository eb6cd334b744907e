from __future__ import annotations

from gauntlet.records import BackdoorCounts, Counts, Detected, DetectorCounts, Record, SeedScore
from reports.contest import Contest
from tests.sample_records import record, sample


def _with(made: Record, clean: int, asr: int, flagged: tuple[int, int] | None = None) -> Record:
    """One seed of 200 clean and 50 triggered images."""
    nothing = Counts(hits=0, n=50)
    hits = Counts(hits=asr, n=50)
    backdoor = BackdoorCounts(
        name="glasses", asr=hits, asr_inclusive=hits, untriggered=nothing, robust=nothing, by_class=()
    )
    detector = None
    if flagged is not None:
        counts = Counts(hits=flagged[1], n=50)
        found = Detected(name="glasses", flagged=counts, auroc=0.9, at_1=counts, at_5=counts)
        detector = DetectorCounts(threshold=0, clean=Counts(hits=flagged[0], n=200), backdoors=(found,))
    (first, *_) = made.scores
    values = first.model_dump() | {
        "clean": Counts(hits=clean, n=200),
        "backdoors": (backdoor,),
        "undefended_asr": (hits,),
        "detector": detector,
    }
    return made.model_copy(update={"scores": (SeedScore.model_validate(values),)})


def test_the_row_of_a_pair_by_hand() -> None:
    rule = {"rule": "contest"}
    records = [
        _with(record("handed_over"), 196, 50),
        _with(record("handed_over", "fine_pruning", defense_settings={"epochs": 3}), 190, 40),
        _with(record("handed_over", "fine_pruning", defense_settings=rule | {"tune": False}), 70, 30),
        _with(record("handed_over", "fine_pruning", defense_settings=rule), 188, 10),
        _with(record("handed_over", "n_plus_1"), 184, 9, flagged=(11, 41)),
    ]
    text = Contest().render(records)
    row = [cell.strip() for cell in text.strip().splitlines()[-1].strip("|").split("|")]

    assert row[2:] == [
        "handed_over",
        "glasses",
        "98.0 / 100.0",
        "35.0 / 60.0",
        "94.0 / 20.0",
        "92.0 / 18.0",
        "5.5",
        "82.0",
        "18.0",
        "20.0",
    ]


def test_without_a_pair_there_is_nothing_to_show() -> None:
    assert Contest().render(sample()) == ""
