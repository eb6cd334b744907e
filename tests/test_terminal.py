from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from gauntlet.records import Gate, Status
from gauntlet.terminal import print_leaderboard
from tests.sample_records import PROVENANCE, record, sample

MISSING = [("clean_label", "fine_tuning")]


def printed(width: int, *, colour: bool = False) -> str:
    text = StringIO()
    console = Console(
        file=text, width=width, force_terminal=colour, color_system="standard" if colour else None, _environ={}
    )
    print_leaderboard(sample(missing=MISSING), console, [Path("results/x/records.jsonl"), Path("results/x/a.md")])
    return text.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line) for line in printed(width).splitlines()) <= width


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_status_is_said_in_words(width: int) -> None:
    words = " ".join(printed(width).split())
    for status in Status:
        assert status in words, status


def test_numbers_and_notes_are_there() -> None:
    text = printed(200)
    assert "96.7 / 7.2" in text
    assert "not-run (2)" in text
    assert "(2) no record" in text
    assert re.search(r"1 +spatial_smoothing +12\.1 \[10\.4, 14\.1\]", text)


def test_every_defense_has_a_column_at_any_width() -> None:
    for width in (80, 120, 200):
        heads = printed(width).replace("\n", " ")
        for part in ("perfect_filter", "clean_retrain", "fine_tuning", "pgd_training", "augmentation"):
            assert part in heads


def test_provenance_then_artifacts_come_last() -> None:
    lines = printed(200).rstrip().splitlines()
    assert lines[-2:] == ["results/x/records.jsonl", "results/x/a.md"]
    assert any(PROVENANCE.commit in line for line in lines[-9:-2])
    assert any(PROVENANCE.task_hash[:16] in line for line in lines[-9:-2])


def test_colour_only_adds_to_the_words() -> None:
    coloured = printed(200, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == printed(200)


def test_a_case_without_a_gate_and_defenses_ranked_apart() -> None:
    text = StringIO()
    records = [
        record("badnets", "one", stage="repair", gate=Gate()),
        record("badnets", "two", stage="repair", parts=(1,)),
        record("sig", "two", stage="repair", parts=(1,)),
    ]
    print_leaderboard(records, Console(file=text, width=120))
    for words in ("2 pass, 1 ungated", "not in suite", "ranked apart"):
        assert words in text.getvalue()
    assert "ranked apart" not in printed(120)


def test_markup_in_a_reason_is_text() -> None:
    text = StringIO()
    one = record(clean=None, status=Status.ERROR, reason="[bold]lists[/bold] like [0, 1]")
    print_leaderboard([one], Console(file=text, width=120))
    assert "[bold]lists[/bold] like [0, 1]" in text.getvalue()


def test_the_worst_attack_shows_its_settings_where_its_name_alone_says_too_little() -> None:
    def table(*settings: dict[str, object]) -> str:
        records = [
            record(defense=name, stage="repair", asr=(0.9,), attack_settings=each)
            for name, each in zip(("fine_tuning", "fine_pruning"), settings, strict=True)
        ]
        text = StringIO()
        print_leaderboard(records, Console(file=text, width=160))
        return text.getvalue().partition("Defenses by their worst case")[2]

    assert "badnets[" not in table({"patch": 5}, {"patch": 5})
    assert "badnets[patch=5]" in table({}, {"patch": 5})


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_ranking_shows_every_figure_and_setting_whatever_the_names(width: int) -> None:
    records = [
        record(attack, defense, stage="repair", asr=(1.0,), seconds=123.4, defense_settings={"steps": steps})
        for attack in ("badnets", "clean_label")
        for defense in ("neural_cleanse", "adversarial_neuron_pruning")
        for steps in (200, 1000)
    ]
    text = StringIO()
    print_leaderboard(records, Console(file=text, width=width))
    table = text.getvalue().partition("a case\n")[2].partition("\n\n")[0]
    assert "\u2026" not in table
    assert len(re.findall(r"(?m)^1 .*100\.0 \[99\.7, 100\.0\] +100\.0 .* 2/2 +\d+\.\d", table)) == 1
    assert len(re.findall(r"(?m)^\d .*100\.0 \[99\.7, 100\.0\]", table)) == 4
    assert (table.count("steps=200"), table.count("steps=1000")) == (2, 2)
    assert max(map(len, table.splitlines())) <= width


def test_a_window_too_narrow_for_the_figures_cuts_none_of_them() -> None:
    assert "\u2026" not in printed(40)
