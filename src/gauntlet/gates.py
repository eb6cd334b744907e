"""Judging: counts in, a status and one sentence out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gauntlet.attack import Family
from gauntlet.case import Case
from gauntlet.plugin import name_of
from gauntlet.records import BackdoorCounts, Counts, Gate, SeedScore, Status
from gauntlet.stats import aurocs, pooled, ratio, wilson

__all__ = ["Verdict", "is_undefended", "judge"]


@dataclass(frozen=True)
class Verdict:
    """A status, and why it is not a pass in one sentence (empty for a pass)."""

    status: Status
    reason: str = ""


@dataclass(frozen=True)
class _Estimate:
    """A share with its 95 % interval; n = 0: unknown."""

    share: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, counts: Counts) -> _Estimate:
        return cls(ratio(counts), *wilson(counts.hits, counts.n), counts.n)


@dataclass(frozen=True)
class _Check:
    """One threshold. limit: what the estimate must reach (at_least) or must not exceed."""

    measure: str
    found: _Estimate
    limit: float
    at_least: bool

    @property
    def broken(self) -> bool:
        """The point estimate breaks the threshold; so does a measure that counted nothing."""
        if not self.found.n:
            return True
        return self.found.share < self.limit if self.at_least else self.found.share > self.limit

    @property
    def surely(self) -> bool:
        """The whole 95 % interval lies on the wrong side."""
        if not self.found.n:
            return True
        return self.found.high < self.limit if self.at_least else self.found.low > self.limit

    def sentence(self) -> str:
        """`ASR 0.93 [0.91, 0.94] > max 0.20`."""
        side = f"min {_limit(self.limit)}" if self.at_least else f"max {_limit(self.limit)}"
        if not self.found.n:
            return f"{self.measure} unknown, since no image counts; {side}"
        sign = "<" if self.at_least else ">"
        return f"{self.measure} {_share(self.found, self.limit)} {sign} {side}"


def judge(case: Case, scores: Sequence[SeedScore]) -> Verdict:
    """The verdict on a case from the counts of all its seeds, pooled.

    - attack-failed: without the defense the attack stays below case.min_undefended_asr (never for a control or where no
      trigger is known, and not for an undefended row that has a gate on its ASR: there the gate speaks).
    - collapsed: the clean accuracy is below case.collapse times the undefended one.
    - fail: a threshold is broken, and its whole interval with it; marginal: the interval reaches the threshold, or
      together the seeds keep what one of them surely breaks, or one whose attack failed has a part in a low ASR.
    With several backdoors the worst counts: the strongest for a maximum, the weakest for a minimum.
    """
    attack_failed = _attack_failed(case, scores)
    if attack_failed and not is_undefended(case):
        return attack_failed
    verdict = _collapsed(case, scores) or _gates(case, scores)
    if verdict.status is Status.PASS:
        verdict = _seed_by_seed(case, scores)
    gate_speaks = case.gate.min_asr is not None or verdict.status is not Status.PASS
    return attack_failed if attack_failed and not gate_speaks else verdict


def is_undefended(case: Case) -> bool:
    """Whether this is the row without a defense."""
    return case.defense.leaves_victim


def _seed_by_seed(case: Case, scores: Sequence[SeedScore]) -> Verdict:
    """What the pooled counts of a kept gate hide: their interval knows nothing of how trainings differ."""
    lowered = case.gate.max_asr is not None and not is_undefended(case)
    found = []
    for score in scores if len(scores) > 1 else ():
        alone = _collapsed(case, [score]) or _gates(case, [score])
        failed = _attack_failed(case, [score]) if lowered else None
        broken = [alone] if alone.status in (Status.FAIL, Status.COLLAPSED) else []
        found += [f"seed {score.seed} alone: {each.reason}" for each in (*broken, failed) if each]
    return Verdict(Status.MARGINAL, "; ".join(found)) if found else Verdict(Status.PASS)


def _attack_failed(case: Case, scores: Sequence[SeedScore]) -> Verdict | None:
    asr = max(_by_place([score.undefended_asr for score in scores]), key=_rank)
    if not any(score.undefended_asr for score in scores):
        return None
    if case.attack.family is Family.CONTROL or (asr.n and ratio(asr) >= case.min_undefended_asr):
        return None
    check = _Check("undefended ASR", _Estimate.of(asr), case.min_undefended_asr, at_least=True)
    meaning = "the attack failed" if is_undefended(case) else "the attack failed, so this says nothing of the defense"
    return Verdict(Status.ATTACK_FAILED, f"{check.sentence()}: {meaning} ({_where(case, scores, asr.n)})")


def _collapsed(case: Case, scores: Sequence[SeedScore]) -> Verdict | None:
    if is_undefended(case):
        return None
    clean, before = (pooled(s.clean for s in scores), pooled(s.undefended_clean for s in scores))
    limit = case.collapse * ratio(before)
    if not clean.n or not before.n or ratio(clean) >= limit:
        return None
    reason = (
        f"clean accuracy {_share(_Estimate.of(clean), limit)} collapsed below {case.collapse:g} of the undefended "
        f"{ratio(before):.2f} ({_where(case, scores, clean.n)})"
    )
    return Verdict(Status.COLLAPSED, reason)


def _gates(case: Case, scores: Sequence[SeedScore]) -> Verdict:
    broken = [check for check in _checks(case, scores) if check.broken]
    if not broken:
        return Verdict(Status.PASS)
    sure = [check for check in broken if check.surely]
    shown = sure or broken
    where = _where(case, scores, shown[0].found.n)
    text = "; ".join(check.sentence() for check in shown)
    if sure:
        return Verdict(Status.FAIL, f"{text} ({where})")
    return Verdict(Status.MARGINAL, f"{text}, which its interval reaches ({where})")


def _checks(case: Case, scores: Sequence[SeedScore]) -> list[_Check]:
    gate = case.gate
    clean = pooled(score.clean for score in scores)
    asr = _by_backdoor(scores, lambda backdoor: backdoor.asr)
    robust = _by_backdoor(scores, lambda backdoor: backdoor.robust)
    wanted = [
        ("clean accuracy", clean, gate.min_clean_accuracy, True),
        ("ASR", min(asr, key=_rank), gate.min_asr, True),
        ("ASR", max(asr, key=_rank), gate.max_asr, False),
        ("robust accuracy", min(robust, key=_rank), gate.min_robust_accuracy, True),
    ]
    checks = [
        _Check(name, _Estimate.of(counts), limit, side) for name, counts, limit, side in wanted if limit is not None
    ]
    return checks + _stage_checks(gate, scores)


def _stage_checks(gate: Gate, scores: Sequence[SeedScore]) -> list[_Check]:
    """What is asked of a stage's own answers; a defense of another stage has none, so that it breaks the gate."""
    clean = pooled(score.detector.clean for score in scores if score.detector)
    removed = pooled(score.filtered.poison for score in scores if score.filtered)
    verdicts = [score.verdict for score in scores if score.verdict]
    flagged = Counts(hits=sum(verdict.flagged for verdict in verdicts), n=len(verdicts))
    checks = []
    if gate.min_auroc is not None:
        checks.append(_Check("AUROC", _auroc(scores), gate.min_auroc, at_least=True))
    if gate.max_clean_flagged is not None:
        checks.append(_Check("clean inputs flagged", _Estimate.of(clean), gate.max_clean_flagged, at_least=False))
    # A filter that met no poison can't have missed any.
    missed_none = any(score.filtered for score in scores) and not removed.n
    if gate.min_poison_removed is not None and not missed_none:
        checks.append(_Check("poison removed", _Estimate.of(removed), gate.min_poison_removed, at_least=True))
    if gate.flagged is not None:
        checks.append(_Check("models flagged", _Estimate.of(flagged), float(gate.flagged), at_least=gate.flagged))
    return checks


def _auroc(scores: Sequence[SeedScore]) -> _Estimate:
    """The backdoor that the detector tells worst."""
    found = aurocs(scores)
    if not found:
        return _Estimate(math.nan, 0.0, 1.0, 0)
    worst = min(found.values(), key=lambda area: area.value)
    return _Estimate(worst.value, *worst.interval, worst.n)


def _by_backdoor(scores: Sequence[SeedScore], counts: Callable[[BackdoorCounts], Counts]) -> list[Counts]:
    """The pooled counts of each backdoor; one empty count where a case has none."""
    by_name: dict[str, list[Counts]] = {}
    for score in scores:
        for backdoor in score.backdoors:
            by_name.setdefault(backdoor.name, []).append(counts(backdoor))
    return [pooled(parts) for parts in by_name.values()] or [Counts(hits=0, n=0)]


def _by_place(seeds: Sequence[Sequence[Counts]]) -> list[Counts]:
    """The pooled counts of each backdoor, given those of each seed in one order."""
    return [pooled(parts) for parts in zip(*seeds, strict=True)] or [Counts(hits=0, n=0)]


def _rank(counts: Counts) -> float:
    return ratio(counts) if counts.n else -1.0


def _where(case: Case, scores: Sequence[SeedScore], n: int) -> str:
    attack, architecture = name_of(case.attack), name_of(case.architecture)
    defended = "undefended" if is_undefended(case) else f"after {name_of(case.defense)}"
    seeds = "1 seed" if len(scores) == 1 else f"{len(scores)} seeds"
    return f"{attack} on {architecture} {defended}, {seeds}, n = {n:,}"


def _limit(limit: float) -> str:
    return next((text for digits in (2, 3) if float(text := f"{limit:.{digits}f}") == limit), f"{limit:g}")


def _share(found: _Estimate, limit: float) -> str:
    """`0.93 [0.91, 0.94]`, with as many digits as it takes to tell the share from the limit."""
    digits = next((d for d in (2, 3) if float(f"{found.share:.{d}f}") != round(limit, d)), 4)
    return f"{found.share:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
