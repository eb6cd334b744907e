from __future__ import annotations

from gauntlet.curves import HEIGHT, WIDTH, curves
from gauntlet.findings import findings
from gauntlet.plugin import Kind
from gauntlet.records import Counts, Record, RoundCounts
from gauntlet.registry import Registry
from gauntlet.report import Report
from tests.sample_records import sample


def with_rounds() -> Record:
    """Two seeds of three and four rounds; the hits of each seed are told apart by their sum only."""
    base = next(record for record in sample() if len(record.scores) >= 2)

    def rounds(clean: list[int], asr: list[int]) -> tuple[RoundCounts, ...]:
        pairs = enumerate(zip(clean, asr, strict=True), start=1)
        return tuple(
            RoundCounts(round=number, clean=Counts(hits=one, n=100), asr=(Counts(hits=two, n=50),))
            for number, (one, two) in pairs
        )

    first = base.scores[0].model_copy(update={"rounds": rounds([10, 20, 30], [0, 50, 20])})
    second = base.scores[1].model_copy(update={"rounds": rounds([30, 40, 50, 60], [0, 40, 30, 10])})
    return base.model_copy(update={"scores": (first, second)})


def test_the_seeds_are_pooled_over_the_rounds_that_all_have() -> None:
    (curve,) = curves([with_rounds(), *sample()])
    assert curve.rounds == (1, 2, 3)
    assert curve.clean == (0.2, 0.3, 0.4)
    assert curve.asr == (0.0, 0.9, 0.5)
    assert curve.peak == 1
    assert curve.points((0.0, 0.5, 1.0)) == f"0.0,{HEIGHT}.0 {WIDTH / 2},{HEIGHT / 2} {WIDTH}.0,0.0"


def test_the_findings_name_the_highest_round_and_the_last() -> None:
    (table,) = [table for table in findings([with_rounds(), *sample()]) if table.title.startswith("Federations")]
    assert [row[4:] for row in table.rows] == [("90.0", "2", "30.0", "3", "50.0", "40.0")]
    assert not [table for table in findings(sample()) if table.title.startswith("Federations")]


def test_the_page_draws_them_and_has_no_empty_section() -> None:
    report: Report = Registry.discover().build(Kind.REPORT, "html", {})
    page = report.render([with_rounds()])
    assert page.count("<polyline") == 2
    assert curves([with_rounds()])[0].points((0.0, 0.9, 0.5)) in page
    assert "<svg" not in report.render(sample())
