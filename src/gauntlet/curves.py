"""Clean accuracy and ASR round by round of a federation: the seeds pooled, as numbers and as points of a drawing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gauntlet.records import Counts, Record, RoundCounts
from gauntlet.stats import Rate
from gauntlet.summary import attack_label, defense_label

__all__ = ["HEIGHT", "WIDTH", "Curve", "curves"]

WIDTH, HEIGHT = 320, 140
"""Of a drawing's field, in its own units."""


@dataclass(frozen=True)
class Curve:
    """One record's rounds. clean, asr: shares in [0, 1], one a round; asr is the worst backdoor's of that round."""

    task: str
    architecture: str
    attack: str
    defense: str
    rounds: tuple[int, ...]
    clean: tuple[float, ...]
    asr: tuple[float, ...]

    @property
    def peak(self) -> int:
        """The place of the highest ASR."""
        return max(range(len(self.asr)), key=self.asr.__getitem__)

    def points(self, shares: Sequence[float]) -> str:
        """The points of an SVG polyline: rounds from left to right, shares from 0 at the bottom to 1 at the top."""
        first, span = self.rounds[0], max(1, self.rounds[-1] - self.rounds[0])
        places = [WIDTH * (number - first) / span for number in self.rounds]
        return " ".join(f"{x:.1f},{HEIGHT * (1 - share):.1f}" for x, share in zip(places, shares, strict=True))


def curves(records: Sequence[Record]) -> list[Curve]:
    """The records that have rounds, in their order; of rounds that only some seeds kept there is nothing to pool."""
    return [_curve(record) for record in records if any(score.rounds for score in record.scores)]


def _curve(record: Record) -> Curve:
    by_seed = [{one.round: one for one in score.rounds} for score in record.scores]
    numbers = sorted(set.intersection(*(set(seed) for seed in by_seed)))
    rounds = [[seed[number] for seed in by_seed] for number in numbers]
    return Curve(
        record.task,
        record.architecture,
        attack_label(record),
        defense_label(record),
        tuple(numbers),
        tuple(_pooled(seed.clean for seed in one) for one in rounds),
        tuple(_worst(one) for one in rounds),
    )


def _worst(seeds: Sequence[RoundCounts]) -> float:
    places = range(len(seeds[0].asr))
    return max((_pooled(one.asr[place] for one in seeds) for place in places), default=0.0)


def _pooled(counts: Iterable[Counts]) -> float:
    rate = Rate.of(list(counts))
    return rate.value if rate.n else 0.0
