"""The leaderboard in a terminal: readable from 80 columns on, with and without colour."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gauntlet.board import Board, Cell, Column, Row, Standing, ranked
from gauntlet.findings import Findings, findings
from gauntlet.records import UNGATED, Record, Status
from gauntlet.wording import DASH, percent, provenance_lines, standing_text, status_text, summary_line

__all__ = ["print_leaderboard"]

_STYLES = {
    Status.PASS.value: "green",
    UNGATED: "",
    Status.FAIL.value: "bold red",
    Status.MARGINAL.value: "yellow",
    Status.ATTACK_FAILED.value: "cyan",
    Status.COLLAPSED.value: "magenta",
    Status.ERROR.value: "bold red reverse",
}
_CELL_WIDTH = 14  # of `not-applicable`, the longest status
_ATTACK_WIDTH = 22
_LEAST_WIDTH = 8  # at which a name is still told from another one
_GAP = 2
_PARTS = re.compile(r"\[|[^_,\[]+[_,]?|[_,]")
_HEADINGS = {
    "rank": "#",
    "defense": "defense",
    "worst ASR": "worst ASR",
    "mean ASR": "mean",
    "mean robust": "robust",
    "worst clean drop": "drop",
    "mean DER": "DER",
    "coverage": "cover",
    "seconds": "s",
}
_LEFT = ("defense", "on", "statuses")
_RANKING = (
    "Defenses by their worst case, in percent. robust: triggered images that keep their true class, in the mean; "
    "drop: most clean accuracy lost; s: seconds a case"
)
_APART = ". Defenses that the suite sets against different attacks are ranked apart"


def print_leaderboard(records: Sequence[Record], console: Console, artifacts: Sequence[Path] = ()) -> None:
    """Print attacks by defenses, the ranking, the provenance and, last, the paths of the artifacts."""
    console.print(Text(f"Leaderboard: {summary_line(records)}", style="bold"))
    boards, places = ranked(records)
    for board in boards:
        _print_board(board, console)
    for found in findings(records):
        _print_findings(found, console)
    _print_ranking(places, console)
    console.print()
    for what, value in provenance_lines(records):
        console.print(Text(f"{what}: {value}", style="dim"))
    for path in artifacts:
        console.print(Text(str(path)), soft_wrap=True)


def _print_board(board: Board, console: Console) -> None:
    notes = board.notes
    console.print()
    console.print(Text(f"{board.task}, {board.architecture}: clean accuracy / ASR in percent", style="italic"))
    for columns in _blocks(board.columns, console.width):
        table = Table(box=None, padding=(0, _GAP, 0, 0))
        table.add_column("attack", width=_ATTACK_WIDTH, overflow="fold")
        for column in columns:
            table.add_column(_heading(column), width=_CELL_WIDTH, overflow="fold")
        for row in board.rows:
            table.add_row(_row_heading(row), *(_cell(board.cell(row, column), notes) for column in columns))
        console.print(table)
        console.print()
    for number, note in enumerate(notes, start=1):
        console.print(Text(f"({number}) {note}"))


def _blocks(columns: Sequence[Column], width: int) -> Iterator[Sequence[Column]]:
    """As many columns at a time as stand side by side in the terminal, all blocks about as wide."""
    most = max(1, (width - _ATTACK_WIDTH - _GAP) // (_CELL_WIDTH + _GAP))
    size = math.ceil(len(columns) / math.ceil(len(columns) / most))
    for start in range(0, len(columns), size):
        yield columns[start : start + size]


def _heading(column: Column) -> Text:
    return Text(_folded(column.label, _CELL_WIDTH), style="italic" if column.reference else "bold")


def _row_heading(row: Row) -> Text:
    text = Text(_folded(row.label, _ATTACK_WIDTH))
    if row.control:
        text.append("\ncontrol", style="bright_black")
    return text


def _folded(label: str, width: int) -> str:
    """The label in lines of at most `width`, broken at underscores and between settings where that is possible."""
    lines = [""]
    for part in _PARTS.findall(label):
        if lines[-1] and (len(lines[-1]) + len(part) > width or part.startswith("[")):
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _cell(cell: Cell, notes: Sequence[str]) -> Text:
    style = _STYLES.get(cell.verdict, "bright_black")
    numbers = ""
    if cell.figures:
        worst = cell.figures.worst
        numbers = f"{percent(cell.figures.clean.value)} / {percent(worst.asr.value) if worst else DASH}\n"
    mark = f" ({notes.index(cell.note) + 1})" if cell.note else ""
    return Text(f"{numbers}{status_text(cell)}{mark}", style=style)


def _print_findings(found: Findings, console: Console) -> None:
    """Without task and architecture where all rows share them, since a terminal is narrow."""
    shown = [place for place in range(len(found.headings)) if place > 1 or len({row[place] for row in found.rows}) > 1]
    console.print()
    console.print(Text(f"{found.title}. {found.legend}", style="italic"))
    table = Table(box=None, padding=(0, _GAP, 0, 0))
    for place in shown:
        table.add_column(found.headings[place], justify="left" if place < 4 else "right", overflow="fold")
    for row in found.rows:
        table.add_row(*(Text(row[place]) for place in shown))
    console.print(table)


def _print_ranking(rows: Sequence[Standing], console: Console) -> None:
    headings = dict(_HEADINGS)
    if console.width >= 120:
        headings["on"] = "worst on"
    if console.width >= 170:
        headings["statuses"] = "statuses"
    console.print()
    several = sum(row.rank == 1 for row in rows) > 1
    console.print(Text(f"{_RANKING}{_APART if several else ''}", style="italic"))
    texts = _ranking_texts(rows)
    widths = {name: max(len(heading), *(len(text[name]) for text in texts)) for name, heading in headings.items()}
    gap = _GAP if _defense_room(widths, console.width, _GAP) >= min(widths["defense"], _CELL_WIDTH) else 1
    defense = min(widths["defense"], _defense_room(widths, console.width, gap))
    fits = defense >= min(widths["defense"], _LEAST_WIDTH)
    table = Table(box=None, padding=(0, gap, 0, 0))
    for name, heading in headings.items():
        if name in _LEFT:
            table.add_column(heading, overflow="fold", min_width=defense if fits and name == "defense" else None)
        else:
            # A figure that is cut is lost, so that in a window too narrow for all of them they go on below.
            table.add_column(heading, justify="right", no_wrap=fits, overflow="fold", min_width=widths[name] * fits)
    for row, text in zip(rows, texts, strict=True):
        if fits and len(text["defense"]) > defense:
            text["defense"] = _folded(text["defense"], defense)
        style = "" if row.rank is not None else "bright_black"
        table.add_row(*(Text(text[name]) for name in headings), style=style)
    console.print(table)


def _defense_room(widths: Mapping[str, int], width: int, gap: int) -> int:
    """The columns that the figures leave to the defense; the other names can fold to an attack's width."""
    taken = (min(own, _ATTACK_WIDTH) if name in _LEFT else own for name, own in widths.items() if name != "defense")
    return width - sum(taken) - gap * len(widths)


def _ranking_texts(rows: Sequence[Standing]) -> list[dict[str, str]]:
    attacks = {row.worst_attack for row in rows}
    texts = [standing_text(row) for row in rows]
    for text in texts:
        # The settings stand in the board above; here they would push the figures out of the window.
        short = text["on"].partition("[")[0]
        if sum(attack.partition("[")[0] == short for attack in attacks) < 2:
            text["on"] = short
    return texts
