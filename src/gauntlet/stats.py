"""Statistics of counts: pooled shares, Wilson intervals, the spread over seeds, defense effectiveness."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gauntlet.records import Counts, SeedScore

__all__ = ["Area", "Rate", "aurocs", "defense_effectiveness", "pooled", "ratio", "spread", "wilson"]


def wilson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a binomial share, in [0, 1]; n = 0 knows nothing: (0, 1).

    Wilson 1927, JASA 22:209. It stays inside [0, 1] and keeps its coverage at 0 % and 100 %, where ASR lives.
    Raises ValueError unless 0 <= hits <= n and 0 < confidence < 1.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits = {hits} of n = {n}; legal: 0 <= hits <= n")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}; legal: between 0 and 1, both excluded")
    if n == 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, z2n = hits / n, z * z / n
    middle = (share + z2n / 2) / (1 + z2n)
    half = z / (1 + z2n) * math.sqrt(share * (1 - share) / n + z2n / (4 * n))
    # Rounding must not leave 1e-17 where the formula gives exactly 0 or 1.
    return (0.0 if hits == 0 else max(0.0, middle - half)), (1.0 if hits == n else min(1.0, middle + half))


def pooled(counts: Iterable[Counts]) -> Counts:
    """The sum: every image of every seed weighs the same."""
    parts = list(counts)
    return Counts(hits=sum(part.hits for part in parts), n=sum(part.n for part in parts))


def ratio(counts: Counts) -> float:
    """The share in [0, 1]; NaN when nothing was counted."""
    return counts.hits / counts.n if counts.n else math.nan


def spread(counts: Iterable[Counts]) -> float:
    """Sample standard deviation of the seeds' shares; NaN for fewer than two seeds that counted anything."""
    shares = [ratio(part) for part in counts if part.n]
    return statistics.stdev(shares) if len(shares) > 1 else math.nan


def defense_effectiveness(undefended_clean: float, clean: float, undefended_asr: float, asr: float) -> float:
    """DER in [0, 1], from shares in [0, 1]: 1 removes a perfect attack for free, 0.5 is what doing nothing gets.

    (max(0, drop of ASR) - max(0, drop of clean accuracy) + 1) / 2. Zhu et al. 2023, arXiv:2304.11823.
    """
    return (max(0.0, undefended_asr - asr) - max(0.0, undefended_clean - clean) + 1) / 2


@dataclass(frozen=True)
class Rate:
    """A share pooled over seeds: `hits` of `n`, and the seeds' sample standard deviation (NaN for a single seed)."""

    hits: int
    n: int
    spread: float

    @classmethod
    def of(cls, counts: Sequence[Counts]) -> Rate:
        """Pool the seeds."""
        total = pooled(counts)
        return cls(total.hits, total.n, spread(counts))

    @property
    def value(self) -> float:
        """The share in [0, 1]; NaN when nothing was counted."""
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval."""
        return wilson(self.hits, self.n)


@dataclass(frozen=True)
class Area:
    """The mean AUROC of the seeds. error: its standard error. n: triggered images of all seeds."""

    value: float
    error: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, in [0, 1]."""
        half = statistics.NormalDist().inv_cdf(0.975) * self.error
        return max(0.0, self.value - half), min(1.0, self.value + half)


def auroc_error(value: float, triggered: int, clean: int) -> float:
    """The standard error of an AUROC over so many images. Hanley & McNeil 1982, Radiology 143:29."""
    one, two = value / (2 - value), 2 * value * value / (1 + value)
    square = value * (1 - value) + (triggered - 1) * (one - value**2) + (clean - 1) * (two - value**2)
    return math.sqrt(max(0.0, square) / (triggered * clean))


def aurocs(scores: Sequence[SeedScore]) -> dict[str, Area]:
    """The AUROC of each backdoor over the seeds; none without a detector or without triggered images."""
    found: dict[str, list[tuple[float, float, int]]] = {}
    for score in scores:
        for one in score.detector.backdoors if score.detector else ():
            if one.flagged.n and score.detector:
                error = auroc_error(one.auroc, one.flagged.n, score.detector.clean.n)
                found.setdefault(one.name, []).append((one.auroc, error, one.flagged.n))
    return {
        name: Area(
            statistics.fmean(value for value, _, _ in parts),
            math.hypot(*(error for _, error, _ in parts)) / len(parts),
            sum(n for _, _, n in parts),
        )
        for name, parts in found.items()
    }
