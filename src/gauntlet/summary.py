"""The figures of one record: its seeds pooled, with intervals, the spread over seeds, and what they cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gauntlet.records import BackdoorCounts, Counts, Poison, Record, SeedScore
from gauntlet.settings import tag
from gauntlet.stats import Rate, defense_effectiveness, ratio

__all__ = ["BackdoorFigures", "Figures", "attack_label", "defense_label", "defense_seconds", "figures", "seconds"]


@dataclass(frozen=True)
class BackdoorFigures:
    """One backdoor over all seeds. undefended: its ASR without the defense. der: mean over the seeds, in [0, 1].

    distances: measure -> mean over images and seeds.
    """

    name: str
    asr: Rate
    undefended: Rate
    inclusive: Rate
    untriggered: Rate
    robust: Rate
    der: float
    distances: dict[str, float]


@dataclass(frozen=True)
class Figures:
    """What the seeds of one record add up to. poison: of each seed."""

    clean: Rate
    undefended_clean: Rate
    backdoors: tuple[BackdoorFigures, ...]
    poison: tuple[Poison, ...]

    @property
    def worst(self) -> BackdoorFigures | None:
        """The backdoor that succeeds most often; None where none was counted."""
        counted = [backdoor for backdoor in self.backdoors if backdoor.asr.n]
        return max(counted, key=lambda backdoor: backdoor.asr.value, default=None)

    @property
    def clean_drop(self) -> float:
        """Clean accuracy that the defense cost, as a share; negative when it gained."""
        return self.undefended_clean.value - self.clean.value


def attack_label(record: Record) -> str:
    """The attack with its settings, as in the record's id."""
    return tag(record.attack, record.attack_settings)


def defense_label(record: Record) -> str:
    """The defense with its settings, as in the record's id."""
    return tag(record.defense, record.defense_settings)


def figures(record: Record) -> Figures | None:
    """The pooled figures; None for a record without scores (not run, not applicable, error)."""
    scores = record.scores
    if not scores:
        return None
    names = dict.fromkeys(backdoor.name for score in scores for backdoor in score.backdoors)
    return Figures(
        clean=Rate.of([score.clean for score in scores]),
        undefended_clean=Rate.of([score.undefended_clean for score in scores]),
        backdoors=tuple(_backdoor(name, scores) for name in names),
        poison=tuple(score.poison for score in scores if score.poison is not None),
    )


def seconds(record: Record) -> float:
    """What the whole case cost when it was computed, all seeds together; NaN when no step ran."""
    return sum(cost.seconds for cost in record.costs) if record.costs else math.nan


def defense_seconds(record: Record) -> float:
    """What the defense itself cost: without the victims, which all defenses share, and without the evaluation."""
    return sum(cost.seconds for cost in record.costs if cost.step == "defense") if record.costs else math.nan


def _backdoor(name: str, scores: Sequence[SeedScore]) -> BackdoorFigures:
    found = [
        (score, backdoor, undefended)
        for score in scores
        for backdoor, undefended in zip(score.backdoors, score.undefended_asr, strict=True)
        if backdoor.name == name
    ]
    counts = [backdoor for _, backdoor, _ in found]
    return BackdoorFigures(
        name=name,
        asr=Rate.of([count.asr for count in counts]),
        undefended=Rate.of([undefended for _, _, undefended in found]),
        inclusive=Rate.of([count.asr_inclusive for count in counts]),
        untriggered=Rate.of([count.untriggered for count in counts]),
        robust=Rate.of([count.robust for count in counts]),
        der=statistics.fmean(_der(*each) for each in found),
        distances=_distances(counts),
    )


def _der(score: SeedScore, backdoor: BackdoorCounts, undefended: Counts) -> float:
    return defense_effectiveness(
        ratio(score.undefended_clean), ratio(score.clean), ratio(undefended), ratio(backdoor.asr)
    )


def _distances(counts: Sequence[BackdoorCounts]) -> dict[str, float]:
    measures = dict.fromkeys(measure for count in counts for measure in count.distances)
    return {
        measure: statistics.fmean(count.distances[measure]["mean"] for count in counts if measure in count.distances)
        for measure in measures
    }
