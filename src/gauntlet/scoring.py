"""The evaluator's step: the score of one defended network, cached with its per-sample predictions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gauntlet.attack import Attack, Mounted
from gauntlet.dataset import TaskData
from gauntlet.defending import preprocessed
from gauntlet.defense import Defense
from gauntlet.evaluation import Predictions, count, count_backdoor, count_by_class, stamp, with_distances
from gauntlet.fingerprint import fingerprint, versions
from gauntlet.images import to_float
from gauntlet.keys import key
from gauntlet.network import Network
from gauntlet.records import Poison, TestCounts
from gauntlet.store import Obtained
from gauntlet.toolbox import EngineTools, describe
from gauntlet.training import predict

__all__ = ["PREDICTIONS", "Score", "poison_counts", "score", "score_spec"]

PREDICTIONS = "predictions.parquet"
"""File in a score's store entry: columns set, index, label, wanted (-1: none), predicted."""


@dataclass(frozen=True, eq=False)
class Score:
    """Counts of one network on the test set, and the predictions behind them (not read back from the store)."""

    counts: TestCounts
    predictions: tuple[Predictions, ...] = ()


def score_spec(attack: Attack, defense: Defense | None, network_key: str, tools: EngineTools) -> dict[str, Any]:
    """Everything that a score depends on; without a defense, of the undefended victim."""
    modules = ["gauntlet.scoring", type(attack).__module__]
    return {
        "network": network_key,
        "attack": describe(attack),
        "defense": None if defense is None else describe(defense),
        "task": tools.data.facts.hash,
        "seed": tools.seed,
        "device": tools.device.type,
        "code": fingerprint(*modules, *([] if defense is None else [type(defense).__module__])),
        "versions": versions(),
    }


def score(
    attack: Attack, defense: Defense | None, mounted: Mounted, network: Network, network_key: str, tools: EngineTools
) -> Obtained[Score]:
    """The score, from the store or measured now."""
    spec = score_spec(attack, defense, network_key, tools)

    def make() -> Score:
        tools.progress.step(f"evaluating: {tools.who}, seed {tools.seed}")
        return _measure(attack, defense, mounted, network, tools)

    return tools.store.obtain(
        "score", key(spec), spec, _ScoreCodec(), make, recompute=tools.recompute, device=str(tools.device)
    )


def _measure(attack: Attack, defense: Defense | None, mounted: Mounted, network: Network, tools: EngineTools) -> Score:
    test = tools.data.test.open()
    images, labels, classes = test.images(), test.labels, tools.data.facts.classes

    def seen(stamped: Tensor, which: str) -> Tensor:
        shown = stamped if defense is None else preprocessed(defense, stamped, tools.seed, which, tools.device)
        return predict(network, shown, tools.recipe, tools.device)

    clean = seen(images, "clean")
    sets = [Predictions("clean", labels, torch.full_like(labels, -1), clean)]
    backdoors = []
    for backdoor in attack.backdoors:
        stamped = stamp(backdoor, images)
        triggered = seen(stamped, backdoor.name)
        measured = count_backdoor(backdoor, labels, clean, triggered, classes)
        backdoors.append(with_distances(measured, to_float(images), to_float(stamped)))
        sets.append(Predictions(backdoor.name, labels, backdoor.labels.apply(labels, classes), triggered))
    right = clean == labels
    counts = TestCounts(
        clean=count(right),
        clean_by_class=count_by_class(right, labels, classes),
        backdoors=tuple(backdoors),
        poison=poison_counts(mounted, tools.data),
    )
    return Score(counts, tuple(sets))


def poison_counts(mounted: Mounted, data: TaskData) -> Poison:
    """Total, per true class, and effective poison of a training set (trap T12)."""
    chosen = mounted.poisoned.nonzero().flatten()
    sources = mounted.sources[chosen]
    labels = data.training.labels[sources]
    changed = (mounted.training.images(chosen) != data.training.images(sources)).flatten(1).any(1)
    relabelled = mounted.training.labels[chosen] != labels
    by_class = torch.bincount(labels, minlength=data.facts.classes).tolist()
    return Poison(
        total=len(chosen),
        train_size=len(mounted.training),
        by_class=tuple(by_class),
        effective=int((changed | relabelled).sum()),
    )


class _ScoreCodec:
    """Counts as JSON, predictions as Parquet."""

    def save(self, value: Score, folder: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        (folder / "score.json").write_text(value.counts.model_dump_json(), encoding="utf-8")
        tables = [
            pa.table(
                {
                    "set": [part.name] * len(part.labels),
                    "index": range(len(part.labels)),
                    "label": part.labels.numpy(),
                    "wanted": part.wanted.numpy(),
                    "predicted": part.predicted.numpy(),
                }
            )
            for part in value.predictions
        ]
        parquet.write_table(pa.concat_tables(tables), folder / PREDICTIONS)

    def load(self, folder: Path) -> Score:
        return Score(TestCounts.model_validate_json((folder / "score.json").read_bytes()))
