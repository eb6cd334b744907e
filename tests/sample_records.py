"""Records as a run of the quick suite would leave them: every status, missing cells, two backdoors in one case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gauntlet.records import BackdoorCounts, Cost, Counts, Gate, Poison, Provenance, Record, SeedScore, Status
from gauntlet.settings import tag

PROVENANCE = Provenance(
    gauntlet="0.1.0",
    commit="6743f1602d6ba4f2c9dcf3a1f0c7a0fe6a1a9d11",
    python="3.11.9",
    torch="2.6.0",
    numpy="2.1.3",
    device="cpu, 2 threads",
    threads=2,
    task_hash="9f2c" * 16,
    task_provenance="scikit-learn's digits, 1,797 real handwritten digits, upscaled to 28x28",
    started="2026-11-21T02:30:00Z",
)
TEST_IMAGES = 450
ELIGIBLE = 405
SEEDS = (0, 1, 2)
GATE = Gate(min_clean_accuracy=0.9, max_asr=0.2)


def counts(share: float, n: int, seed: int = 0) -> Counts:
    """A share of n, a little different for each seed."""
    wobble = (-0.004, 0.0, 0.005)[seed % 3] if 0.01 < share < 0.99 else 0.0
    return Counts(hits=round(min(1, share + wobble) * n), n=n)


def backdoor(asr: float, robust: float, seed: int = 0, name: str = "trigger") -> BackdoorCounts:
    return BackdoorCounts(
        name=name,
        asr=counts(asr, ELIGIBLE, seed),
        asr_inclusive=counts(min(1, asr * 0.9 + 0.1), TEST_IMAGES, seed),
        untriggered=counts(0.004, ELIGIBLE, seed),
        robust=counts(robust, ELIGIBLE, seed),
        by_class=(counts(asr, ELIGIBLE, seed),),
        distances={"l_inf": {"mean": 0.91, "median": 1, "stdev": 0.1, "iqr": 0.1, "min": 0.5, "max": 1.0}},
    )


def score(clean: float, asr: Sequence[float], seed: int, undefended: tuple[float, float]) -> SeedScore:
    names = ["trigger", "second"]
    return SeedScore(
        seed=seed,
        clean=counts(clean, TEST_IMAGES, seed),
        clean_by_class=(),
        backdoors=tuple(
            backdoor(each, max(0.0, clean - each), seed, name) for name, each in zip(names, asr, strict=False)
        ),
        undefended_clean=counts(undefended[0], TEST_IMAGES, seed),
        undefended_asr=tuple(counts(undefended[1], ELIGIBLE, seed) for _ in asr),
        poison=Poison(total=108, train_size=1080, by_class=(11,) * 9 + (9,), effective=108),
    )


def record(
    attack: str = "badnets",
    defense: str = "none",
    *,
    clean: float | None = 0.978,
    asr: Sequence[float] = (0.998,),
    undefended: tuple[float, float] = (0.978, 0.998),
    status: Status = Status.PASS,
    reason: str = "",
    expected: str = "",
    family: str = "dirty_label",
    stage: str = "reference",
    architecture: str = "simple_cnn",
    attack_settings: Mapping[str, object] | None = None,
    defense_settings: Mapping[str, object] | None = None,
    seconds: float = 0.4,
    reserve: int = 100,
    seeds: tuple[int, ...] = SEEDS,
    gate: Gate = GATE,
    parts: tuple[int, ...] = (0,),
) -> Record:
    """A record; clean=None leaves it without scores."""
    labels = (tag(attack, attack_settings or {}), tag(defense, defense_settings or {}))
    suffix = "" if reserve == 100 else f"-reserve{reserve}"
    steps = (
        [("victim", 3.1), ("undefended score", 0.05), ("defense", seconds), ("score", 0.05)]
        if clean is not None
        else []
    )
    return Record(
        id=f"digits-{architecture}-{labels[0]}-{labels[1]}{suffix}",
        suite="quick",
        task="digits",
        architecture=architecture,
        attack=attack,
        attack_settings=dict(attack_settings or {}),
        family=family,
        defense=defense,
        defense_settings=dict(defense_settings or {}),
        stage=stage,
        reserve=reserve,
        status=status,
        reason=reason,
        expected=expected,
        seeds=seeds,
        scores=() if clean is None else tuple(score(clean, asr, seed, undefended) for seed in seeds),
        gate=gate,
        costs=tuple(
            Cost(step=step, seed=seed, seconds=each, peak_memory=600 * 2**20, device="cpu", cached=False)
            for seed in seeds
            for step, each in steps
        ),
        parts=parts,
        provenance=PROVENANCE,
    )


ATTACKS: dict[str, tuple[str, dict[str, object], tuple[float, float]]] = {
    "none": ("control", {}, (0.981, 0.004)),
    "badnets": ("dirty_label", {}, (0.978, 0.998)),
    "single_pixel": ("dirty_label", {"poison_ratio": 0.05}, (0.976, 0.961)),
    "clean_label": ("clean_label", {"eps": 0.5, "poison_ratio": 0.25}, (0.974, 0.842)),
    "adversarial_embedding": ("training_controlled", {}, (0.969, 0.993)),
    "refool": ("dirty_label", {}, (0.98, 0.12)),
    "label_flip": ("control", {}, (0.951, 0.011)),
}
DEFENSES: dict[str, tuple[str, float, dict[str, tuple[float, float]]]] = {
    "none": ("reference", 0.0, {}),
    "perfect_filter": ("reference", 3.0, {"": (0.977, 0.005)}),
    "random_filter": ("reference", 3.0, {}),
    "clean_retrain": ("reference", 3.1, {"": (0.979, 0.004)}),
    "fine_tuning": (
        "repair",
        0.6,
        {
            "": (0.968, 0.03),
            "badnets": (0.966, 0.071),
            "clean_label": (0.961, 0.402),
            "adversarial_embedding": (0.952, 0.188),
        },
    ),
    "spatial_smoothing": ("preprocessing", 0.1, {"": (0.952, 0.013), "clean_label": (0.955, 0.121)}),
    "jpeg_compression": ("preprocessing", 0.4, {"": (0.975, 0.94), "single_pixel": (0.971, 0.33)}),
    "gaussian_augmentation": ("preprocessing", 3.9, {"": (0.967, 0.972), "single_pixel": (0.966, 0.204)}),
    "pgd_training": ("in training", 14.2, {"": (0.921, 0.995), "single_pixel": (0.371, 0.02)}),
}
PER_DEFENSE_STATUS: dict[tuple[str, str], tuple[Status, str, str]] = {
    ("adversarial_embedding", "perfect_filter"): (
        Status.NOT_APPLICABLE,
        "the attacker hands over a trained model: there is no training set to work on",
        "",
    ),
    ("adversarial_embedding", "pgd_training"): (
        Status.NOT_APPLICABLE,
        "the attacker hands over a trained model: there is no training set to work on",
        "",
    ),
    ("clean_label", "gaussian_augmentation"): (
        Status.ERROR,
        "training gaussian_augmentation on simple_cnn diverged in epoch 3: loss is nan; lower the learning rate",
        "",
    ),
}


def _status(attack: str, defense: str, clean: float, asr: float) -> tuple[Status, str, str]:
    if attack == "refool":
        return Status.ATTACK_FAILED, "undefended ASR 0.12 [0.10, 0.14] < min 0.50: the attack failed", ""
    if clean < 0.5:
        return Status.COLLAPSED, f"clean accuracy {clean:.2f} is below half of the undefended one", ""
    if DEFENSES[defense][0] == "reference" or asr <= 0.2:
        if 0.18 < asr <= 0.2:
            return Status.MARGINAL, f"ASR {asr:.2f} [0.17, 0.22] reaches above max 0.20 within its interval", ""
        return Status.PASS, "", ""
    expected = "JPEG keeps large bright patches" if defense == "jpeg_compression" and attack == "badnets" else ""
    return Status.FAIL, f"ASR {asr:.2f} > max 0.20 ({attack} after {defense}, 3 seeds, n = 1,215)", expected


def sample(architectures: Sequence[str] = ("simple_cnn",), missing: Sequence[tuple[str, str]] = ()) -> list[Record]:
    """Attacks x defenses for each architecture, without the missing (attack, defense) pairs."""
    records = []
    for architecture in architectures:
        for attack, (family, settings, undefended) in ATTACKS.items():
            for defense, (stage, seconds, results) in DEFENSES.items():
                if (attack, defense) in missing:
                    continue
                clean, asr = results.get(attack, results.get("", undefended))
                if family == "control" or attack == "refool":
                    asr = min(asr, undefended[1])
                forced = PER_DEFENSE_STATUS.get((attack, defense))
                status, reason, expected = forced or _status(attack, defense, clean, asr)
                records.append(
                    record(
                        attack,
                        defense,
                        clean=None if forced else clean,
                        asr=(asr,),
                        undefended=undefended,
                        status=status,
                        reason=reason,
                        expected=expected,
                        family=family,
                        stage=stage,
                        architecture=architecture,
                        attack_settings=settings,
                        seconds=seconds,
                    )
                )
    return records
