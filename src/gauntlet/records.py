"""The record of a case: everything the reports are made of, as JSON (pydantic checks it on the way in)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "UNGATED",
    "VERDICTS",
    "BackdoorCounts",
    "Cost",
    "Counts",
    "Detected",
    "DetectorCounts",
    "FilterCounts",
    "Gate",
    "Poison",
    "Provenance",
    "Record",
    "RoundCounts",
    "SeedScore",
    "Status",
    "TestCounts",
    "VerdictCounts",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Status(StrEnum):
    """What a leaderboard cell says. Never a blank, never -1."""

    PASS = "pass"  # noqa: S105 -- a status, not a password
    FAIL = "fail"
    MARGINAL = "marginal"
    ATTACK_FAILED = "attack-failed"
    COLLAPSED = "collapsed"
    NOT_APPLICABLE = "not-applicable"
    ERROR = "error"
    NOT_RUN = "not-run"


UNGATED = "ungated"
"""What tables say in the place of a pass where the suite asks nothing of the case."""
VERDICTS = (Status.PASS.value, UNGATED, *(status.value for status in Status if status is not Status.PASS))
"""The words for a case in tables."""


class Counts(_Frozen):
    """`hits` of `n`; ratios and intervals are computed from these, never stored alone."""

    hits: int = Field(ge=0)
    n: int = Field(ge=0)


class BackdoorCounts(_Frozen):
    """One backdoor on the test set of one seed.

    asr: triggered images whose true label is not the wanted one (the target class is excluded) that yield the
    wanted label. asr_inclusive: the same with the images that have the wanted label already; of one source class, with
    the target's. untriggered: the same images as in `asr` without trigger that already yield the wanted label; none
    where the images carry the feature as they are. robust: the images of `asr` that keep their true label.
    by_class: asr counts for each true class. distances: measure -> {mean, median, stdev, iqr, min, max} between the
    triggered and the original images.
    """

    name: str
    asr: Counts
    asr_inclusive: Counts
    untriggered: Counts
    robust: Counts
    by_class: tuple[Counts, ...]
    distances: dict[str, dict[str, float]] = {}


class Poison(_Frozen):
    """How much was poisoned (trap T12). effective: poisoned samples whose delivered image differs from the original."""

    total: int
    train_size: int
    by_class: tuple[int, ...]
    effective: int


class Cost(_Frozen):
    """One step's cost. seconds and peak memory (bytes, of the process or of the GPU) as measured when it ran."""

    step: str
    seed: int
    seconds: float
    peak_memory: int
    device: str
    cached: bool


class Detected(_Frozen):
    """What an input detector makes of one backdoor's triggered images (those that count in `asr`).

    auroc: against the clean test images; NaN without images. at_1, at_5: flagged at thresholds that 1 and 5 % of the
    clean test images exceed.
    """

    name: str
    flagged: Counts
    auroc: float
    at_1: Counts
    at_5: Counts


class DetectorCounts(_Frozen):
    """An input detector on the test set. threshold: of its score, from the clean reserve alone. clean: flagged clean
    test images, false alarms.
    """

    threshold: float
    clean: Counts
    backdoors: tuple[Detected, ...]


class VerdictCounts(_Frozen):
    """What a model verdict said. anomaly: of each class. suspects: classes that it names. targets: those that the
    attack really aims at; none for a control.
    """

    anomaly: tuple[float, ...]
    suspects: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def flagged(self) -> bool:
        """Whether the model is called backdoored."""
        return bool(self.suspects)

    @property
    def named(self) -> bool:
        """Whether a true target is among the suspects."""
        return bool(set(self.suspects) & set(self.targets))


class FilterCounts(_Frozen):
    """What a training-set filter removed: of the poisoned samples, and of the others."""

    poison: Counts
    clean: Counts


class RoundCounts(_Frozen):
    """The global network after one round of a federation, on the whole test set. asr: of each backdoor."""

    round: int = Field(ge=1)
    clean: Counts
    asr: tuple[Counts, ...]


class TestCounts(_Frozen):
    """One network on the test set of one seed. What the defense's stage doesn't measure is None.

    An input that a detector rejects counts neither as right nor as a success of the attack. Test images that carry a
    backdoor's feature as they are (a semantic trigger) are none of the clean ones. poison: None where triggered images
    are made within the training, and where nobody knows. rounds: of a federation.
    """

    __test__ = False

    clean: Counts
    clean_by_class: tuple[Counts, ...]
    backdoors: tuple[BackdoorCounts, ...]
    poison: Poison | None
    detector: DetectorCounts | None = None
    verdict: VerdictCounts | None = None
    filtered: FilterCounts | None = None
    rounds: tuple[RoundCounts, ...] = ()


class SeedScore(TestCounts):
    """One seed of a case. undefended_*: the same counts of the victim before the defense; ASR of each backdoor.

    predictions: the store key of the score, whose entry keeps the per-sample predictions.
    """

    seed: int
    undefended_clean: Counts
    undefended_asr: tuple[Counts, ...]
    predictions: str = ""


class Gate(_Frozen):
    """What a case must reach; None: not asked. Shares in [0, 1].

    min_auroc and max_clean_flagged (the share of clean inputs that are rejected) are asked of input detectors,
    flagged (the model is called backdoored, or is not) of model verdicts, min_poison_removed of training-set filters.
    """

    min_clean_accuracy: float | None = Field(default=None, ge=0, le=1)
    min_asr: float | None = Field(default=None, ge=0, le=1)
    max_asr: float | None = Field(default=None, ge=0, le=1)
    min_robust_accuracy: float | None = Field(default=None, ge=0, le=1)
    min_auroc: float | None = Field(default=None, ge=0, le=1)
    max_clean_flagged: float | None = Field(default=None, ge=0, le=1)
    min_poison_removed: float | None = Field(default=None, ge=0, le=1)
    flagged: bool | None = None

    @property
    def asks(self) -> bool:
        """Whether there is any threshold."""
        return any(value is not None for value in self.model_dump().values())


class Provenance(_Frozen):
    """Where a result comes from."""

    gauntlet: str
    commit: str
    python: str
    torch: str
    numpy: str
    device: str
    threads: int
    task_hash: str
    task_provenance: str
    started: str


class Record(_Frozen):
    """One cell of the leaderboard. reason: why it is not a pass, in one sentence (empty for a pass). parts: the
    cross-products of its suite that it stands in: 0 is the suite's own, the others its parts. place: among the cases
    of the run.
    """

    id: str
    suite: str
    task: str
    architecture: str
    attack: str
    attack_settings: dict[str, Any] = {}
    family: str
    defense: str
    defense_settings: dict[str, Any] = {}
    stage: str
    reserve: int
    status: Status
    reason: str = ""
    expected: str = ""
    seeds: tuple[int, ...]
    scores: tuple[SeedScore, ...] = ()
    gate: Gate = Gate()
    costs: tuple[Cost, ...] = ()
    parts: tuple[int, ...] = (0,)
    place: int = 0
    provenance: Provenance

    @property
    def verdict(self) -> str:
        """The status in the words of tables, which tell a case that kept its gate from one that has none."""
        return UNGATED if self.status is Status.PASS and not self.gate.asks else self.status.value
