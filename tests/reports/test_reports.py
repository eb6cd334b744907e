from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest

from gauntlet.records import Gate, Status
from gauntlet.report import ReportUnavailableError
from reports.csv import Csv
from reports.html import Html
from reports.markdown import Markdown
from tests.sample_records import PROVENANCE, record, sample

NASTY = 'a|b <script>alert("x")</script>\n& "quotes" [1]'
VOID = {"meta", "input", "br", "link", "wbr"}


# CSV


def test_csv_reads_back_as_the_long_table() -> None:
    records = sample(missing=[("clean_label", "fine_tuning")])
    table = pd.read_csv(io.StringIO(Csv().render(records)), keep_default_na=False, na_values=[""])
    assert table["id"].tolist() == [each.id for each in records]
    assert table["status"].tolist() == [each.status for each in records]
    assert table["attack"].tolist() == [each.attack for each in records]
    assert json.loads(table.attack_settings[table.attack == "clean_label"].iloc[0]) == {
        "eps": 0.5,
        "poison_ratio": 0.25,
    }
    measured = table[table.asr_n > 0]
    # Earlier pandas reads a float's last bit otherwise.
    assert measured.asr.to_list() == pytest.approx((measured.asr_hits / measured.asr_n).to_list(), rel=1e-14)
    assert ((measured.asr_low <= measured.asr) & (measured.asr <= measured.asr_high)).all()


def test_csv_keeps_a_reason_with_line_breaks_in_one_field() -> None:
    table = pd.read_csv(io.StringIO(Csv().render([record(clean=None, status=Status.ERROR, reason=NASTY)])))
    assert table.reason.tolist() == [NASTY]


# Markdown


def tables(text: str) -> list[list[str]]:
    return [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]


def test_markdown_has_the_ranking_and_a_table_per_board() -> None:
    text = Markdown().render(sample(architectures=("simple_cnn", "le_net")))
    assert len(tables(text)) == 3
    assert text.index("## Defenses") < text.index("## digits, simple_cnn") < text.index("## digits, le_net")
    assert text.rindex("## Provenance") > text.index("## digits, le_net")
    assert PROVENANCE.commit in text
    assert text.endswith("\n")


def test_markdown_cells_are_never_blank() -> None:
    for table in tables(Markdown().render(sample(missing=[("clean_label", "fine_tuning")]))):
        for line in (table[0], *table[2:]):
            assert all(cell.strip() for cell in line.strip("|").split("|")), line


def test_markdown_rows_keep_their_columns_whatever_a_name_holds() -> None:
    records = [record("badnets", attack_settings={"a|b": "c\nd"}), record("badnets", clean=None, reason=NASTY)]
    for table in tables(Markdown().render(records)):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(widths) == 1


def test_markdown_footnotes_stand_on_one_line_each() -> None:
    text = Markdown().render([record(clean=None, status=Status.ERROR, reason=NASTY)])
    assert '\n1. a\\|b &lt;script>alert("x")&lt;/script> & "quotes" [1]\n' in text
    assert "error (1)" in text


# HTML


class Page(HTMLParser):
    """Checks that tags balance; collects attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data.strip())

    @property
    def words(self) -> str:
        return " ".join(part for part in self.text if part)


def test_html_is_one_well_formed_file_without_external_resources() -> None:
    text = Html().render(sample(architectures=("simple_cnn", "le_net"), missing=[("clean_label", "fine_tuning")]))
    page = Page(text)
    assert page.links == []
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_html_says_every_number_and_status_in_text() -> None:
    words = Page(Html().render(sample(missing=[("clean_label", "fine_tuning")]))).words
    for status in Status:
        assert status in words
    assert "94.1 92.6–95.3 97.6 clean fail, expected 1" in words
    assert "not-run 2" in words
    assert "spatial_ smoothing preprocessing 12.1 10.4–14.1 clean_ label" in words
    assert PROVENANCE.commit in words


def test_html_escapes_what_plugins_say() -> None:
    text = Html().render([record(clean=None, status=Status.ERROR, reason=NASTY), record("sig", expected=NASTY)])
    page = Page(text)
    assert page.tags.count("script") == 1
    assert '<script>alert("x")</script>' in page.words


def test_html_has_light_and_dark() -> None:
    text = Html().render(sample())
    assert "prefers-color-scheme: dark" in text
    assert 'content="light dark"' in text


def test_html_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ReportUnavailableError, match=r"backdoor-gauntlet\[html\]"):
        Html().render(sample())


@pytest.mark.parametrize("report", [Html(), Markdown()])
def test_reports_tell_ungated_from_passed(report: Html | Markdown) -> None:
    text = report.render([record("badnets", gate=Gate()), record("sig")])
    assert "1 pass, 1 ungated" in text
    assert re.search(r"\] ungated|>ungated<", text)


@pytest.mark.parametrize("report", [Csv(), Html(), Markdown()])
def test_reports_are_deterministic_and_take_any_mixture(report: Csv | Html | Markdown) -> None:
    records = [
        record("label_flip", asr=(), family="control"),
        record("calculator", asr=(0.2, 0.9), undefended=(0.9, 0.9)),
        record("badnets", clean=None, status=Status.NOT_RUN, reason="left out by the budget"),
        record("one_seed", seeds=(4,)),
    ]
    assert report.render(records) == report.render(records)
    assert "left out by the budget" in report.render(records)
