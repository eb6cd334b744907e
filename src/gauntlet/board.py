"""The leaderboard as plain values: one board per task and architecture, and the standings of the defenses."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from gauntlet.records import Record, Status
from gauntlet.stats import Rate
from gauntlet.summary import Figures, attack_label, defense_label, defense_seconds, figures

__all__ = ["Board", "Cell", "Column", "Row", "Standing", "boards", "ranked", "standings"]

# The values of Family.CONTROL and Stage.REFERENCE, whose modules need torch: reading results must not.
_CONTROL = "control"
_REFERENCE = "reference"

_UNEXPLAINED = "no record: the case was not selected or the run stopped before it"
_UNASKED = "not in suite"


@dataclass(frozen=True)
class Row:
    """An attack. failed: it does not work even undefended, so nothing can be learnt from its defended cells."""

    label: str
    family: str
    failed: bool

    @property
    def control(self) -> bool:
        """A control is no attack: it never counts in a ranking."""
        return self.family == _CONTROL


@dataclass(frozen=True)
class Column:
    """A defense."""

    label: str
    stage: str

    @property
    def reference(self) -> bool:
        """A reference column may see what no defense may; it is never ranked."""
        return self.stage == _REFERENCE


@dataclass(frozen=True)
class Cell:
    """One attack against one defense. verdict: the status in the words of tables. figures: None where nothing was
    measured. seconds: of the defense itself.
    """

    status: Status
    verdict: str
    reason: str = ""
    expected: str = ""
    figures: Figures | None = None
    seconds: float = math.nan

    @property
    def note(self) -> str:
        """What a reader must be told beside the status: why there is no number, or why a broken gate is expected."""
        return self.expected or ("" if self.figures else self.reason)


_EMPTY = Cell(Status.NOT_RUN, Status.NOT_RUN.value, _UNEXPLAINED)
_OUTSIDE = Cell(Status.NOT_RUN, _UNASKED)


@dataclass(frozen=True)
class Board:
    """Attacks by defenses on one task with one architecture. asked: the rows and columns of each cross-product."""

    task: str
    architecture: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str], Cell]
    asked: tuple[tuple[Collection[str], Collection[str]], ...]

    def cell(self, row: Row, column: Column) -> Cell:
        """The cell; where there is no record, `not-run`, or `not in suite` where the suite has no such case."""
        found = self.cells.get((row.label, column.label))
        return found or (_EMPTY if self.asks(row, column) else _OUTSIDE)

    def asks(self, row: Row, column: Column) -> bool:
        """Whether the suite has this case: a suite of several parts is no full cross-product."""
        return any(row.label in rows and column.label in columns for rows, columns in self.asked)

    @cached_property
    def attacks(self) -> tuple[Row, ...]:
        """The rows that count: those of attacks that succeed undefended, without controls."""
        return tuple(row for row in self.rows if not row.control and not row.failed)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """The distinct notes of the cells, in reading order."""
        cells = (self.cell(row, column) for row in self.rows for column in self.columns)
        return tuple(dict.fromkeys(cell.note for cell in cells if cell.note))


@dataclass(frozen=True)
class Standing:
    """How one defense fares over all boards.

    rank: from 1 among those that the suite sets against the same attacks; None for reference columns and for a defense
    without a single measured attack. measured: attacks with a measured ASR, of `attacks`, those that the suite sets it
    against. worst: the highest ASR, on `worst_attack`. mean_asr, mean_robust (of each case the least robust accuracy
    among its backdoors), worst_drop (of clean accuracy, over every measured row, controls included) and mean_der:
    shares, NaN where nothing was measured. seconds: mean of a case, of the defense itself. statuses: how many cells of
    the column have each verdict.
    """

    column: Column
    rank: int | None
    measured: int
    attacks: int
    worst: Rate | None
    worst_attack: str
    mean_asr: float
    mean_robust: float
    worst_drop: float
    mean_der: float
    seconds: float
    statuses: Mapping[str, int]

    @property
    def coverage(self) -> str:
        """`5/6`: attacks measured, of those that count."""
        return f"{self.measured}/{self.attacks}"


def ranked(records: Sequence[Record]) -> tuple[list[Board], list[Standing]]:
    """What `boards` and `standings` give, at the price of one of them."""
    found = _boards(records)
    columns = dict.fromkeys(column for board in found for column in board.columns)
    groups: dict[Collection[tuple[int, str]], list[Standing]] = {}
    for column in columns:
        groups.setdefault(_attacks(column, found), []).append(_standing(column, found))
    ranks = [place for group in groups.values() for place in _ranks(group)]
    places = sorted(ranks, key=_place)
    order = {standing.column: place for place, standing in enumerate(places)}
    return [_sorted(board, order) for board in found], places


def boards(records: Sequence[Record]) -> list[Board]:
    """One board per task and architecture, in order of appearance.

    Rows: attacks in order of appearance, controls last. Columns: references first, then defenses from the best.
    """
    return ranked(records)[0]


def standings(records: Sequence[Record]) -> list[Standing]:
    """The defenses from the best to the worst, then those that can't be ranked, then the reference columns.

    Ranked by the worst ASR over the attacks that succeed undefended (trap T9), among those that the suite sets against
    the same attacks, the groups of most attacks first: the worst of three can't be compared with the worst of five. In
    a group, a defense that was not measured against some attack stands below every one that was measured against more,
    whatever its numbers (unknown is not passed), and a collapsed one below the others of its coverage: a model that
    recognises nothing has an ASR of 0.
    """
    return ranked(records)[1]


def _merit(standing: Standing) -> tuple[bool, int, bool, float, float]:
    if standing.column.reference:
        return True, 0, False, 0.0, 0.0
    worst = standing.worst.value if standing.worst else math.inf
    mean = standing.mean_asr if standing.worst else math.inf
    missing = standing.attacks - standing.measured
    return False, missing, standing.statuses.get(Status.COLLAPSED, 0) > 0, worst, mean


def _attacks(column: Column, found: Sequence[Board]) -> frozenset[tuple[int, str]]:
    """The attacks that count and that the suite sets the defense against: a board's number and a row's label each."""
    return frozenset(
        (number, row.label)
        for number, board in enumerate(found)
        for row in board.attacks
        if not column.reference and board.asks(row, column)
    )


def _place(standing: Standing) -> tuple[bool, bool, int]:
    """Sorts the groups and keeps the order in them: the ranked ones first, references last as they come."""
    reference = standing.column.reference
    return reference, standing.rank is None, 0 if reference else -standing.attacks


def _ranks(group: Sequence[Standing]) -> list[Standing]:
    return [
        replace(standing, rank=place) if standing.measured and not standing.column.reference else standing
        for place, standing in enumerate(sorted(group, key=_merit), start=1)
    ]


def _standing(column: Column, found: Sequence[Board]) -> Standing:
    cells = [(board, row, board.cell(row, column)) for board in found for row in board.rows if board.asks(row, column)]
    counting = [(board, row, cell) for board, row, cell in cells if row in board.attacks]
    measured = [
        (backdoor, f"{row.label} ({board.task}, {board.architecture})" if len(found) > 1 else row.label)
        for board, row, cell in counting
        if cell.figures and (backdoor := cell.figures.worst)
    ]
    worst, worst_attack = max(measured, key=lambda pair: pair[0].asr.value, default=(None, ""))
    return Standing(
        column=column,
        rank=None,
        measured=len(measured),
        attacks=len(counting),
        worst=worst.asr if worst else None,
        worst_attack=worst_attack,
        mean_asr=_mean(backdoor.asr.value for backdoor, _ in measured),
        mean_robust=_mean(share for _, _, cell in counting if (share := _least_robust(cell)) is not None),
        worst_drop=max((cell.figures.clean_drop for _, _, cell in cells if cell.figures), default=math.nan),
        mean_der=_mean(backdoor.der for backdoor, _ in measured),
        seconds=_mean(cell.seconds for _, _, cell in cells),
        statuses=Counter(cell.verdict for _, _, cell in cells),
    )


def _least_robust(cell: Cell) -> float | None:
    """Of the backdoors whose images have a true label that anybody knows."""
    backdoors = cell.figures.backdoors if cell.figures else ()
    return min((backdoor.robust.value for backdoor in backdoors if backdoor.robust.n), default=None)


def _boards(records: Sequence[Record]) -> list[Board]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.task, record.architecture), []).append(record)
    varied = _with_several_reserves(records)
    products = _products(records, varied)
    return [
        _board(place, group, varied, [product for product in products if place in product.places])
        for place, group in groups.items()
    ]


@dataclass(frozen=True)
class _Product:
    """One cross-product of a suite, as far as records know it. places: task and architecture of its boards."""

    places: set[tuple[str, str]] = field(default_factory=set)
    rows: set[str] = field(default_factory=set)
    columns: set[str] = field(default_factory=set)


def _products(records: Sequence[Record], varied: Collection[str]) -> list[_Product]:
    found: dict[tuple[str, int], _Product] = {}
    for record in records:
        for part in record.parts:
            product = found.setdefault((record.suite, part), _Product())
            product.places.add((record.task, record.architecture))
            product.rows.add(attack_label(record))
            product.columns.add(_column(record, varied).label)
    return list(found.values())


def _board(
    place: tuple[str, str], records: Sequence[Record], varied: Collection[str], products: Sequence[_Product]
) -> Board:
    task, architecture = place
    failed = {attack_label(record) for record in records if record.status is Status.ATTACK_FAILED}
    rows = dict.fromkeys(Row(label := attack_label(record), record.family, label in failed) for record in records)
    return Board(
        task=task,
        architecture=architecture,
        rows=tuple(sorted(rows, key=lambda row: row.control)),
        columns=tuple(dict.fromkeys(_column(record, varied) for record in records)),
        cells={(attack_label(record), _column(record, varied).label): _cell(record) for record in records},
        asked=tuple((product.rows, product.columns) for product in products),
    )


def _cell(record: Record) -> Cell:
    found = figures(record)
    return Cell(record.status, record.verdict, record.reason, record.expected, found, defense_seconds(record))


def _with_several_reserves(records: Sequence[Record]) -> set[str]:
    """The defenses that met the same victim with more than one size of the clean reserve."""
    reserves: dict[tuple[str, ...], set[int]] = {}
    for record in records:
        key = (defense_label(record), record.task, record.architecture, attack_label(record))
        reserves.setdefault(key, set()).add(record.reserve)
    return {label for (label, *_), sizes in reserves.items() if len(sizes) > 1}


def _column(record: Record, varied: Collection[str]) -> Column:
    label = defense_label(record)
    return Column(f"{label} (reserve {record.reserve})" if label in varied else label, record.stage)


def _sorted(board: Board, order: Mapping[Column, int]) -> Board:
    columns = sorted(board.columns, key=lambda column: (not column.reference, order[column]))
    return replace(board, columns=tuple(columns))


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan
