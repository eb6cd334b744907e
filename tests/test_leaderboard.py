from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pytest

from gauntlet.board import Standing, boards, standings
from gauntlet.leaderboard import frame, pivot, ranking
from gauntlet.records import Counts, Detected, DetectorCounts, Gate, Record, Status
from gauntlet.stats import wilson
from gauntlet.wording import cell_text, duration, percent, provenance_lines, size, summary_line
from tests.sample_records import PROVENANCE, SEEDS, record, sample


def order(records: Sequence[Record]) -> list[str]:
    return [standing.column.label for standing in standings(records)]


def standing(records: Sequence[Record], defense: str) -> Standing:
    return next(each for each in standings(records) if each.column.label == defense)


def defended(attack: str, defense: str, asr: float, **changes: object) -> Record:
    return record(attack, defense, asr=(asr,), stage="repair", **changes)  # type: ignore[arg-type]


# The long table


def test_frame_has_one_row_per_record_with_counts_and_intervals() -> None:
    records = sample()
    table = frame(records)
    assert table["id"].tolist() == [each.id for each in records]
    row = table[(table.attack == "badnets") & (table.defense == "fine_tuning")].iloc[0]
    score = next(each for each in records if each.id == row.id).scores
    hits, n = sum(s.backdoors[0].asr.hits for s in score), sum(s.backdoors[0].asr.n for s in score)
    assert (row.asr_hits, row.asr_n) == (hits, n)
    assert row.asr == hits / n
    assert (row.asr_low, row.asr_high) == wilson(hits, n)
    assert row.asr_spread == pytest.approx(
        statistics.stdev(s.backdoors[0].asr.hits / s.backdoors[0].asr.n for s in score)
    )
    assert row.poison_total == 108
    assert row.poison_share == pytest.approx(0.1)
    assert row.poison_effective == 108
    assert row.seconds == pytest.approx(3 * (3.1 + 0.05 + 0.6 + 0.05))
    assert row.defense_seconds == pytest.approx(3 * 0.6)
    assert row.peak_memory_mib == 600
    assert row.device == "cpu"
    assert row.seeds == "0 1 2"
    assert row.distance_l_inf == pytest.approx(0.91)


def test_every_share_of_images_stands_beside_its_counts() -> None:
    one = record("badnets", "strip", stage="input detector")
    found = DetectorCounts(
        threshold=0.5,
        clean=Counts(hits=9, n=450),
        backdoors=(
            Detected(
                name="trigger",
                flagged=Counts(hits=300, n=405),
                auroc=0.9,
                at_1=Counts(hits=100, n=405),
                at_5=Counts(hits=200, n=405),
            ),
        ),
    )
    one = one.model_copy(update={"scores": tuple(s.model_copy(update={"detector": found}) for s in one.scores)})
    row = frame([one]).iloc[0]
    assert (row.caught_hits, row.caught_at_1_hits, row.caught_at_5_hits, row.caught_n) == (900, 300, 600, 1215)
    assert (row.clean_flagged, row.clean_flagged_hits, row.clean_flagged_n) == (0.02, 27, 1350)
    assert row.auroc_low < row.auroc < row.auroc_high
    assert (row.poison_removed_n, row.clean_removed_n) == (0, 0)
    for name in ("asr_inclusive", "untriggered_hit_rate", "undefended_asr", "undefended_clean_accuracy"):
        assert row[name] == row[f"{name}_hits"] / row[f"{name}_n"]


def test_frame_averages_der_over_seeds() -> None:
    one = record("badnets", "fine_tuning", clean=0.9, asr=(0.2,), undefended=(0.95, 1.0))
    wanted = []
    for score in one.scores:
        drop = max(0, score.undefended_asr[0].hits / 405 - score.backdoors[0].asr.hits / 405)
        loss = max(0, score.undefended_clean.hits / 450 - score.clean.hits / 450)
        wanted.append((drop - loss + 1) / 2)
    assert frame([one]).der[0] == pytest.approx(statistics.fmean(wanted))


def test_frame_of_a_record_without_scores_is_nan_never_zero() -> None:
    table = frame([record(clean=None, status=Status.ERROR, reason="boom")])
    row = table.iloc[0]
    assert row.status == "error"
    for column in ("clean_accuracy", "asr", "asr_low", "robust_accuracy", "der", "poison_total", "seconds"):
        assert math.isnan(row[column]), column
    assert row.asr_n == 0


def test_two_backdoors_are_two_rows_and_the_worst_is_in_the_pivot() -> None:
    one = record(asr=(0.25, 0.75), undefended=(0.978, 1.0))
    table = frame([one])
    assert table.backdoor.tolist() == ["trigger", "second"]
    assert table.asr.tolist() == pytest.approx([0.25, 0.75], abs=0.01)
    (board,) = boards([one])
    assert str(pivot(board).loc["badnets", "none"]).startswith("97.8 / 75.")


def test_single_seed_has_no_spread() -> None:
    assert math.isnan(frame([record(seeds=(0,))]).asr_spread[0])


# Attacks by defenses


def test_pivot_says_every_status() -> None:
    (board,) = boards(sample(missing=[("clean_label", "fine_tuning")]))
    table = pivot(board)
    assert (table.map(len) > 0).all(axis=None)
    clean = "clean_label[eps=0.5,poison_ratio=0.25]"
    assert table.loc["badnets", "fine_tuning"] == "96.7 / 7.2 [5.8, 8.7]"
    assert table.loc["adversarial_embedding", "fine_tuning"] == "95.3 / 18.8 [16.7, 21.1] marginal"
    assert table.loc["badnets", "pgd_training"] == "92.1 / 99.5 [98.9, 99.8] fail"
    assert table.loc["single_pixel[poison_ratio=0.05]", "pgd_training"] == "37.1 / 2.0 [1.3, 2.9] collapsed"
    assert str(table.loc["refool", "fine_tuning"]).endswith("attack-failed")
    assert table.loc["badnets", "jpeg_compression"] == "97.6 / 94.1 [92.6, 95.3] fail, expected (1)"
    assert table.loc[clean, "fine_tuning"] == "not-run (2)"
    assert table.loc[clean, "gaussian_augmentation"] == "error (3)"
    assert table.loc["adversarial_embedding", "pgd_training"] == "not-applicable (4)"
    assert board.notes[0] == "JPEG keeps large bright patches"
    assert "no record" in board.notes[1]
    assert "loss is nan" in board.notes[2]
    assert "no training set" in board.notes[3]


def test_pivot_puts_controls_last_and_references_first() -> None:
    (board,) = boards(sample())
    assert [row.label for row in board.rows if row.control] == ["none", "label_flip"]
    assert [row.control for row in board.rows] == sorted(row.control for row in board.rows)
    references = ["none", "perfect_filter", "random_filter", "clean_retrain"]
    assert [column.label for column in board.columns][:4] == references
    assert [column.label for column in board.columns][4:] == order(sample())[:5]


def test_a_board_for_each_task_and_architecture() -> None:
    found = boards(sample(architectures=("simple_cnn", "le_net")))
    assert [(board.task, board.architecture) for board in found] == [("digits", "simple_cnn"), ("digits", "le_net")]


def test_an_attack_without_backdoors_has_a_clean_accuracy_only() -> None:
    one = record("label_flip", asr=(), family="control")
    (board,) = boards([one])
    assert cell_text(board.cell(board.rows[0], board.columns[0])) == "97.8 / –"
    assert frame([one]).backdoor.tolist() == [""]


def test_a_defense_with_several_reserves_gets_several_columns() -> None:
    records = [defended("badnets", "fine_tuning", 0.1, reserve=size) for size in (100, 500)]
    (board,) = boards(records)
    assert {column.label for column in board.columns} == {"fine_tuning (reserve 100)", "fine_tuning (reserve 500)"}
    assert len(standings(records)) == 2


def test_settings_tell_columns_apart() -> None:
    records = [
        defended("badnets", "fine_tuning", 0.1, defense_settings={"learning_rate": rate}) for rate in (0.1, 0.01)
    ]
    assert set(order(records)) == {"fine_tuning[learning_rate=0.1]", "fine_tuning[learning_rate=0.01]"}


def test_a_case_that_nothing_is_asked_of_has_not_passed() -> None:
    records = [record(), defended("badnets", "tuning", 1.0, gate=Gate())]
    (board,) = boards(records)
    assert pivot(board).loc["badnets", "tuning"] == "97.8 / 100.0 [99.7, 100.0] ungated"
    assert standing(records, "tuning").statuses == {"ungated": 1}
    assert summary_line(records).endswith(": 1 pass, 1 ungated")
    assert frame(records)[["status", "gated"]].values.tolist() == [["pass", True], ["pass", False]]


# The ranking


def test_rank_is_by_the_worst_attack_not_by_the_mean() -> None:
    records = [
        defended("badnets", "even", 0.4),
        defended("blended", "even", 0.4),
        defended("badnets", "uneven", 0.0),
        defended("blended", "uneven", 0.6),
    ]
    first, second = standings(records)
    assert (first.column.label, first.rank, second.rank) == ("even", 1, 2)
    assert second.mean_asr < first.mean_asr
    assert second.worst_attack == "blended"


def test_equal_worst_cases_are_ranked_by_the_mean() -> None:
    records = [
        defended("badnets", "more", 0.5),
        defended("blended", "more", 0.4),
        defended("badnets", "less", 0.5),
        defended("blended", "less", 0.1),
    ]
    assert order(records) == ["less", "more"]


@pytest.mark.parametrize("status", [Status.ERROR, Status.NOT_RUN, Status.NOT_APPLICABLE, None])
def test_unknown_is_not_passed(status: Status | None) -> None:
    records = [defended("badnets", "full", 0.9), defended("blended", "full", 0.95), defended("badnets", "gaps", 0.01)]
    if status is not None:
        records.append(defended("blended", "gaps", 0, clean=None, status=status, reason="why"))
    assert order(records) == ["full", "gaps"]
    assert standing(records, "gaps").coverage == "1/2"
    assert standing(records, "full").coverage == "2/2"
    assert standing(records, "gaps").statuses[status or Status.NOT_RUN] == 1


def in_two_parts() -> list[Record]:
    """The suite sets one and two against badnets and blended, its part sets three against sig as well."""
    own, part = {"badnets": 0.3, "blended": 0.3}, {"badnets": 0.1, "blended": 0.2, "sig": 0.9}
    undefended = [record(attack, parts=(0, 1) if attack in own else (1,)) for attack in part]
    cells = [defended(attack, defense, asr) for defense in ("one", "two") for attack, asr in own.items()]
    return undefended + cells + [defended(attack, "three", asr, parts=(1,)) for attack, asr in part.items()]


def test_what_the_suite_does_not_ask_for_is_no_gap() -> None:
    records = in_two_parts()
    found = {each.column.label: each for each in standings(records)}
    assert list(found) == ["three", "one", "two", "none"]
    assert [each.coverage for each in found.values()] == ["3/3", "2/2", "2/2", "3/3"]
    assert [each.rank for each in found.values()] == [1, 1, 2, None]
    assert found["one"].statuses == {"pass": 2}
    (board,) = boards(records)
    assert [pivot(board).loc["sig", name] for name in ("one", "two")] == ["not in suite"] * 2
    assert board.notes == ()


def test_what_was_not_selected_of_a_part_stays_a_gap() -> None:
    records = [each for each in in_two_parts() if (each.attack, each.defense) != ("blended", "three")]
    three = standing(records, "three")
    assert (three.coverage, three.statuses[Status.NOT_RUN]) == ("2/3", 1)


def test_a_defense_without_any_measurement_has_no_rank() -> None:
    records = [defended("badnets", "good", 0.1), defended("badnets", "broken", 0, clean=None, status=Status.ERROR)]
    assert standing(records, "broken").rank is None
    assert standing(records, "broken").worst is None
    assert ranking(standings(records)).set_index("defense").loc["broken", "worst ASR"] == "–"


def test_a_collapsed_defense_stands_below_the_others() -> None:
    collapsed = defended("badnets", "constant", 0.0, clean=0.1, status=Status.COLLAPSED)
    assert order([collapsed, defended("badnets", "weak", 0.9)]) == ["weak", "constant"]


def test_controls_and_failed_attacks_do_not_count() -> None:
    records = [
        defended("badnets", "tuning", 0.1),
        defended("label_flip", "tuning", 0.99, family="control"),
        defended("refool", "tuning", 0.4, status=Status.ATTACK_FAILED),
    ]
    only = standing(records, "tuning")
    assert (only.worst_attack, only.coverage) == ("badnets", "1/1")
    assert only.mean_asr == pytest.approx(0.1, abs=0.01)


def test_the_worst_clean_drop_counts_controls_too() -> None:
    records = [
        defended("badnets", "tuning", 0.1, clean=0.95, undefended=(0.97, 1.0)),
        defended("none", "tuning", 0.0, clean=0.87, undefended=(0.97, 0.0), family="control"),
    ]
    assert standing(records, "tuning").worst_drop == pytest.approx(0.1, abs=0.01)


def test_references_stand_below_and_have_no_rank() -> None:
    records = sample()
    found = standings(records)
    assert [each.rank for each in found] == [1, 2, 3, 4, 5, None, None, None, None]
    assert next(each.column.label for each in found if each.column.reference) == "none"


def test_ranking_over_several_boards_names_where() -> None:
    records = sample(architectures=("simple_cnn", "le_net"))
    first = standings(records)[0]
    assert first.coverage == "8/8"
    assert first.worst_attack.endswith("(digits, simple_cnn)")


def test_an_attack_that_fails_on_one_architecture_counts_on_the_other() -> None:
    records = [
        defended("refool", "tuning", 0.1, status=Status.ATTACK_FAILED, architecture="le_net"),
        defended("refool", "tuning", 0.3, architecture="simple_cnn"),
    ]
    assert standing(records, "tuning").coverage == "1/1"


def test_ranking_table_is_text() -> None:
    table = ranking(standings(sample())).set_index("defense")
    assert table.loc["spatial_smoothing", "rank"] == "1"
    assert table.loc["spatial_smoothing", "worst ASR"] == "12.1 [10.4, 14.1]"
    assert table.loc["none", "rank"] == "–"
    assert table.loc["pgd_training", "statuses"] == "2 pass, 2 fail, 1 attack-failed, 1 collapsed, 1 not-applicable"


# Words


def test_numbers_in_words() -> None:
    assert [percent(share) for share in (0.978, 0, 1, math.nan)] == ["97.8", "0.0", "100.0", "–"]
    assert [duration(s) for s in (0.123, 12.34, 300, 7200, math.nan)] == ["0.12 s", "12.3 s", "5.0 min", "2.0 h", "–"]
    assert [size(n) for n in (0, 1023, 1024, 5 * 2**30)] == ["0 B", "1023 B", "1.0 KiB", "5.0 GiB"]


def test_provenance_shows_every_distinct_value_once() -> None:
    other = record("blended").model_copy(update={"provenance": PROVENANCE.model_copy(update={"commit": "abc"})})
    lines = provenance_lines([record(), record("label_flip"), other])
    assert [value for what, value in lines if what == "commit"] == [PROVENANCE.commit, "abc"]
    assert sum(what == "data" for what, _ in lines) == 1
    assert any("torch 2.6.0" in value for _, value in lines)


def test_summary_counts_statuses_and_seeds() -> None:
    line = summary_line([record(), record("blended", status=Status.FAIL), record("sig", status=Status.FAIL)])
    assert line == f"3 cases, seeds {' '.join(map(str, SEEDS))}: 1 pass, 2 fail"
    assert summary_line([record()]) == f"1 case, seeds {' '.join(map(str, SEEDS))}: 1 pass"
