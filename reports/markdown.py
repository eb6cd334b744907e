"""The leaderboard as GitHub Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gauntlet.board import Board, ranked
from gauntlet.findings import findings
from gauntlet.leaderboard import pivot, ranking
from gauntlet.plugin import report
from gauntlet.records import Record
from gauntlet.report import Report
from gauntlet.wording import provenance_lines, summary_line

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Markdown"]

_RANKING = (
    "Ranked by the worst attack success rate (ASR) over the attacks that succeed undefended; controls don't count. "
    "A defense with less coverage never stands above one with more. Defenses that the suite sets against different "
    "attacks are ranked apart. Reference columns are shown below, unranked. "
    "Robust: triggered images that keep their true class, in the mean; a detector rejects them. "
    "Shares in percent; seconds: the defense's own, a case."
)
_CELLS = (
    "Cell: clean accuracy / ASR with its 95 % Wilson interval, in percent, the seeds pooled; of several backdoors the "
    "worst. A cell without a status word kept its gate; of an ungated one the suite asks nothing."
)


@report
@dataclass(frozen=True)
class Markdown(Report):
    """leaderboard.md: the ranking, attacks by defenses, provenance; reads well on GitHub and in an editor."""

    filename: ClassVar[str] = "leaderboard.md"

    def render(self, records: Sequence[Record]) -> str:
        import pandas as pd

        boards, standings = ranked(records)
        parts = ["# Leaderboard", summary_line(records), "## Defenses, by their worst case", _RANKING]
        parts.append(_table(ranking(standings), index=False))
        for board in boards:
            parts += [f"## {board.task}, {board.architecture}", _CELLS, _table(pivot(board), index=True)]
            parts += _footnotes(board)
        for found in findings(records):
            table = pd.DataFrame(found.rows, columns=list(found.headings))
            parts += [f"## {found.title}", found.legend, _table(table, index=False)]
        parts += ["## Provenance", "\n".join(f"- {what}: {value}" for what, value in provenance_lines(records))]
        return "\n\n".join(parts) + "\n"


def _table(table: pd.DataFrame, *, index: bool) -> str:
    escaped = table.map(_escape).rename(columns=_escape, index=_escape)
    return escaped.to_markdown(index=index, disable_numparse=True)


def _escape(text: object) -> str:
    """A pipe would end the cell, a line break the table, and what looks like a tag would vanish."""
    return " ".join(str(text).replace("|", r"\|").replace("<", "&lt;").split())


def _footnotes(board: Board) -> list[str]:
    if not board.notes:
        return []
    return ["\n".join(f"{number}. {_escape(note)}" for number, note in enumerate(board.notes, start=1))]
