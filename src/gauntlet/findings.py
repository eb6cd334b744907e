"""What detectors, model verdicts and filters found, as tables of text: one per stage that has something to show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gauntlet.curves import curves
from gauntlet.records import Counts, Record, SeedScore, VerdictCounts
from gauntlet.stats import Rate, aurocs
from gauntlet.summary import BackdoorFigures, attack_label, defense_label, figures
from gauntlet.wording import DASH, rate_text

__all__ = ["Findings", "findings", "rates", "values"]


@dataclass(frozen=True)
class Findings:
    """One table. legend: how to read it. rows: as many texts as there are headings."""

    title: str
    legend: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def findings(records: Sequence[Record]) -> list[Findings]:
    """The tables that have rows, in the order of the records."""
    tables = [
        Findings(
            "Backdoors",
            "Every backdoor of the models that have several. ASR: triggered images whose own label is not the wanted "
            "one and that yield it, with its 95 % interval, the seeds pooled; undefended: the same without the "
            "defense; untriggered: those images without the trigger that yield it all the same. all: the images of "
            "all backdoors together. In percent.",
            (*_WHERE, "backdoor", "ASR", "undefended", "untriggered"),
            _backdoors(records),
        ),
        Findings(
            "Input detectors",
            "AUROC: triggered against clean test images, of the backdoor told worst; caught: triggered images flagged "
            "at the detector's own threshold (from the clean reserve) and at 1 and 5 % false alarms; false alarms: "
            "clean test images flagged. In percent.",
            (*_WHERE, "AUROC", "caught", "at 1 %", "at 5 %", "false alarms"),
            _rows(records, _detector),
        ),
        Findings(
            "Model verdicts",
            "flagged: models called backdoored, of all seeds; target named: a true target is among the suspects; "
            "anomaly index: mean over the seeds of the most anomalous class.",
            (*_WHERE, "flagged", "target named", "anomaly index", "suspects"),
            _rows(records, _verdict),
        ),
        Findings(
            "Training-set filters",
            "Shares of the poisoned and of the other training samples that were removed, in percent.",
            (*_WHERE, "poison removed", "clean removed"),
            _rows(records, _filter),
        ),
        Findings(
            "Federations, round by round",
            "The global network on the whole test set, the seeds pooled: the highest ASR of any round, that round, the "
            "clean accuracy after it, and both after the last round. In percent.",
            (*_WHERE, "highest ASR", "in round", "clean then", "last round", "ASR then", "clean then"),
            _federations(records),
        ),
    ]
    return [table for table in tables if table.rows]


_WHERE = ("task", "architecture", "attack", "defense")


def _rows(
    records: Sequence[Record], read: Callable[[Sequence[SeedScore]], list[str] | None]
) -> tuple[tuple[str, ...], ...]:
    found = [(record, read(record.scores)) for record in records]
    return tuple(
        (record.task, record.architecture, attack_label(record), defense_label(record), *texts)
        for record, texts in found
        if texts
    )


def _federations(records: Sequence[Record]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for one in curves(records):
        shares = (one.asr[one.peak], one.clean[one.peak], one.asr[-1], one.clean[-1])
        highest, clean, last, clean_last = (f"{100 * share:.1f}" for share in shares)
        numbers = (str(one.rounds[one.peak]), str(one.rounds[-1]))
        where = (one.task, one.architecture, one.attack, one.defense)
        rows.append((*where, highest, numbers[0], clean, numbers[1], last, clean_last))
    return tuple(rows)


def _backdoors(records: Sequence[Record]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for record in records:
        # Most have one, and adding up its seeds would be for nothing.
        if len({one.name for score in record.scores for one in score.backdoors}) < 2:
            continue
        if (found := figures(record)) is None:
            continue
        where = (record.task, record.architecture, attack_label(record), defense_label(record))
        for one in (*found.backdoors, _all(found.backdoors)):
            rates = (one.asr, one.undefended, one.untriggered)
            rows.append((*where, one.name, *(rate_text(rate) if rate.n else DASH for rate in rates)))
    return tuple(rows)


def _all(backdoors: Sequence[BackdoorFigures]) -> BackdoorFigures:
    """All backdoors as one, by their pooled images."""
    return replace(
        backdoors[0],
        name="all",
        asr=_pooled([one.asr for one in backdoors]),
        undefended=_pooled([one.undefended for one in backdoors]),
        untriggered=_pooled([one.untriggered for one in backdoors]),
    )


def _pooled(rates: Sequence[Rate]) -> Rate:
    return Rate(sum(rate.hits for rate in rates), sum(rate.n for rate in rates), math.nan)


def _detector(scores: Sequence[SeedScore]) -> list[str] | None:
    clean = [score.detector.clean for score in scores if score.detector]
    if not clean:
        return None
    area = min(aurocs(scores).values(), key=lambda one: one.value, default=None)
    text = DASH
    if area is not None:
        low, high = area.interval
        text = f"{100 * area.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    detected = [one for score in scores if score.detector for one in score.detector.backdoors]
    caught = [[one.flagged for one in detected], [one.at_1 for one in detected], [one.at_5 for one in detected]]
    return [text, *map(_rate, caught), _rate(clean)]


def _verdict(scores: Sequence[SeedScore]) -> list[str] | None:
    verdicts = _verdicts(scores)
    if not verdicts:
        return None
    aimed = [verdict for verdict in verdicts if verdict.targets]
    suspects = sorted({suspect for verdict in verdicts for suspect in verdict.suspects})
    return [
        f"{sum(verdict.flagged for verdict in verdicts)}/{len(verdicts)}",
        f"{sum(verdict.named for verdict in aimed)}/{len(aimed)}" if aimed else DASH,
        f"{_anomaly(verdicts):.2f}",
        " ".join(map(str, suspects)) or DASH,
    ]


def _filter(scores: Sequence[SeedScore]) -> list[str] | None:
    found = [score.filtered for score in scores if score.filtered]
    return [_rate([one.poison for one in found]), _rate([one.clean for one in found])] if found else None


def rates(scores: Sequence[SeedScore]) -> dict[str, Rate]:
    """The same as counts for the long table: what was flagged or removed of how many, of 0 without such an answer."""
    detectors = [score.detector for score in scores if score.detector]
    detected = [one for detector in detectors for one in detector.backdoors]
    filtered = [score.filtered for score in scores if score.filtered]
    return {
        "caught": Rate.of([one.flagged for one in detected]),
        "caught_at_1": Rate.of([one.at_1 for one in detected]),
        "caught_at_5": Rate.of([one.at_5 for one in detected]),
        "clean_flagged": Rate.of([detector.clean for detector in detectors]),
        "poison_removed": Rate.of([one.poison for one in filtered]),
        "clean_removed": Rate.of([one.clean for one in filtered]),
    }


def values(scores: Sequence[SeedScore]) -> dict[str, float]:
    """What is no count of images: NaN where the stage has no such answer."""
    verdicts = _verdicts(scores)
    area = min(aurocs(scores).values(), key=lambda area: area.value, default=None)
    low, high = area.interval if area else (math.nan, math.nan)
    return {
        "auroc": area.value if area else math.nan,
        "auroc_low": low,
        "auroc_high": high,
        "models_flagged": statistics.fmean(verdict.flagged for verdict in verdicts) if verdicts else math.nan,
        "targets_named": _named(verdicts),
        "anomaly_index": _anomaly(verdicts),
    }


def _named(verdicts: Sequence[VerdictCounts]) -> float:
    aimed = [verdict.named for verdict in verdicts if verdict.targets]
    return statistics.fmean(aimed) if aimed else math.nan


def _verdicts(scores: Sequence[SeedScore]) -> list[VerdictCounts]:
    return [score.verdict for score in scores if score.verdict]


def _anomaly(verdicts: Sequence[VerdictCounts]) -> float:
    return statistics.fmean(max(verdict.anomaly) for verdict in verdicts) if verdicts else math.nan


def _rate(counts: Sequence[Counts]) -> str:
    rate = Rate.of(counts)
    return rate_text(rate) if rate.n else DASH
