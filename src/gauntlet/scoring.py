"""The evaluator's step: the score of one defended network, cached with its per-sample predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gauntlet.attack import Attack, Backdoor, Family, Mounted
from gauntlet.dataset import TaskData
from gauntlet.defending import Defended, defender_view
from gauntlet.defense import Defense, InputDetector
from gauntlet.evaluation import Predictions, copied, count, count_backdoor, count_by_class
from gauntlet.facts import TaskFacts
from gauntlet.federated.updates import Trajectory, load
from gauntlet.fingerprint import fingerprint, versions
from gauntlet.keys import key
from gauntlet.network import Network
from gauntlet.records import Detected, DetectorCounts, FilterCounts, Poison, RoundCounts, TestCounts, VerdictCounts
from gauntlet.screening import Screen, above, auroc, screen_of, threshold
from gauntlet.store import Obtained
from gauntlet.testsets import TestSets
from gauntlet.toolbox import EngineTools, NetworkCodec, describe, state_of
from gauntlet.training import predict

__all__ = ["PREDICTIONS", "Score", "find_score", "poison_counts", "score", "score_spec"]

PREDICTIONS = "predictions.parquet"
"""File in a score's store entry: columns set, index, label, wanted (-1: none), predicted, suspicion and flagged (null
without an input detector)."""


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
    attack: Attack,
    mounted: Mounted,
    network: Network,
    network_key: str,
    tools: EngineTools,
    *,
    defense: Defense | None = None,
    defended: Defended | None = None,
    reserve: int = 0,
) -> Obtained[Score]:
    """The score of `network`, from the store or measured now; without a defense, of the undefended victim."""
    spec = score_spec(attack, defense, network_key, tools)

    def make() -> Score:
        tools.progress.step(f"evaluating: {tools.who}, seed {tools.seed}")
        screen = None
        if isinstance(defense, InputDetector):
            copy = NetworkCodec(tools.architecture, tools.data, tools.device).restore(state_of(network))
            screen = screen_of(defense, defender_view(defense, attack, mounted, copy, reserve, tools))
        measured = _measure(attack, mounted, _Deployed(network, defense, screen, tools))
        trajectory = mounted.trajectory if defended is None else defended.trajectory
        if trajectory is not None:
            curve = _rounds(attack, network, trajectory, tools)
            measured = replace(measured, counts=measured.counts.model_copy(update={"rounds": curve}))
        return measured if defended is None else _answered(measured, attack, mounted, defended, tools)

    return tools.store.obtain(
        "score", key(spec), spec, _ScoreCodec(), make, recompute=tools.recompute, device=str(tools.device)
    )


def find_score(key: str, tools: EngineTools) -> Obtained[Score] | None:
    """The score of that key when it is in the store and whole."""
    return tools.store.find("score", key, _ScoreCodec(), recompute=tools.recompute)


@dataclass(frozen=True, eq=False)
class _Deployed:
    """A network as its users meet it: behind what the defense does to the inputs, and to whom it listens."""

    network: Network
    defense: Defense | None
    screen: Screen | None
    tools: EngineTools

    def predictions(self, sets: TestSets, backdoor: Backdoor | None) -> Predictions:
        """What it says to the clean test images, or to those with the backdoor's trigger."""
        tools, labels = self.tools, sets.labels(backdoor)
        shown = sets.shown(backdoor, self.defense, tools.seed)
        predicted = predict(self.network, shown, tools.recipe, tools.device)
        name, wanted = "clean", torch.full_like(labels, -1)
        auxiliary = sets.auxiliary(backdoor)
        if backdoor is not None:
            asked = copied(labels, tools.data.facts.classes, auxiliary)
            name, wanted = backdoor.name, backdoor.labels.apply(*asked)
        if self.screen is None:
            return Predictions(name, labels, wanted, predicted, auxiliary=auxiliary)
        suspicion = self.screen.scores(shown)
        return Predictions(name, labels, wanted, predicted, suspicion, suspicion > self.screen.limit, auxiliary)


def _measure(attack: Attack, mounted: Mounted, deployed: _Deployed) -> Score:
    tools = deployed.tools
    data, classes = tools.data, tools.data.facts.classes
    tested = TestSets(data, attack, tools.device, tools.memory)
    clean = deployed.predictions(tested, None)
    sets = [clean]
    backdoors = []
    for backdoor in attack.backdoors:
        triggered = deployed.predictions(tested, backdoor)
        measured = count_backdoor(backdoor, clean, triggered, classes)
        backdoors.append(measured.model_copy(update={"distances": tested.distances(backdoor)}))
        sets.append(triggered)
    free = _free(attack.backdoors, clean, classes)
    right = (clean.answered == clean.labels)[free]
    counts = TestCounts(
        clean=count(right),
        clean_by_class=count_by_class(right, clean.labels[free], classes),
        backdoors=tuple(backdoors),
        poison=poison_counts(mounted, data) if attack.marks_poison else None,
        detector=None if deployed.screen is None else _detector_counts(attack, sets, deployed.screen, classes),
    )
    return Score(counts, tuple(sets))


def _free(backdoors: Sequence[Backdoor], clean: Predictions, classes: int) -> Tensor:
    """bool [N]: the clean test images that carry none of the backdoors' features as they are."""
    carried = torch.zeros(len(clean.labels), dtype=torch.bool)
    for backdoor in backdoors:
        carried |= backdoor.carriers(*clean.asked(classes))
    return ~carried


def _rounds(attack: Attack, network: Network, trajectory: Trajectory, tools: EngineTools) -> tuple[RoundCounts, ...]:
    """What the global network of each kept round does on the test set; `network` itself stays as it is."""
    copy = NetworkCodec(tools.architecture, tools.data, tools.device).restore(state_of(network))
    tested = TestSets(tools.data, attack, tools.device, tools.memory)
    deployed = _Deployed(copy, None, None, tools)
    found = []
    for number, state in zip(trajectory.numbers.tolist(), trajectory.states, strict=True):
        load(copy, state.to(tools.device))
        clean = deployed.predictions(tested, None)
        hits = [
            count_backdoor(one, clean, deployed.predictions(tested, one), tools.data.facts.classes).asr
            for one in attack.backdoors
        ]
        right = (clean.predicted == clean.labels)[_free(attack.backdoors, clean, tools.data.facts.classes)]
        found.append(RoundCounts(round=number, clean=count(right), asr=tuple(hits)))
    return tuple(found)


def _detector_counts(attack: Attack, sets: Sequence[Predictions], screen: Screen, classes: int) -> DetectorCounts:
    clean, found = _suspicion(sets[0])[_free(attack.backdoors, sets[0], classes)], []
    for backdoor, triggered in zip(attack.backdoors, sets[1:], strict=True):
        counted = backdoor.labels.eligible(*triggered.asked(classes))
        scores = _suspicion(triggered)[counted]
        found.append(
            Detected(
                name=backdoor.name,
                flagged=above(scores, screen.limit),
                auroc=auroc(clean, scores),
                at_1=above(scores, threshold(clean, 0.01)),
                at_5=above(scores, threshold(clean, 0.05)),
            )
        )
    return DetectorCounts(threshold=screen.limit, clean=above(clean, screen.limit), backdoors=tuple(found))


def _suspicion(predictions: Predictions) -> Tensor:
    return torch.empty(0) if predictions.suspicion is None else predictions.suspicion


def _answered(score: Score, attack: Attack, mounted: Mounted, defended: Defended, tools: EngineTools) -> Score:
    """The score with what the defense's own answers are worth."""
    added: dict[str, object] = {}
    if defended.keep is not None:
        removed, poisoned = ~defended.keep, mounted.poisoned
        added["filtered"] = FilterCounts(poison=count(removed[poisoned]), clean=count(removed[~poisoned]))
    if (found := defended.inspection) is not None:
        added["verdict"] = VerdictCounts(
            anomaly=tuple(found.anomaly.tolist()),
            suspects=found.suspects,
            targets=_targets(attack, mounted, tools.data.facts),
        )
    return replace(score, counts=score.counts.model_copy(update=added)) if added else score


def _targets(attack: Attack, mounted: Mounted, facts: TaskFacts) -> tuple[int, ...]:
    """The classes that the backdoors aim at; a control has planted none, nor has an attack that poisoned nothing."""
    if attack.family is Family.CONTROL or (attack.delivers_data and not mounted.poisoned.any()):
        return ()
    labels, auxiliary = torch.arange(facts.classes), None
    if second := len(facts.auxiliary_names):
        labels, auxiliary = labels.repeat_interleave(second), torch.arange(second).repeat(facts.classes)
    asked = partial(copied, labels, facts.classes, auxiliary)
    maps = [backdoor.labels for backdoor in attack.backdoors]
    wanted = [each.apply(*asked())[each.eligible(*asked())] for each in maps]
    return tuple(sorted(set(torch.cat(wanted).tolist()))) if wanted else ()


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
                    "set": pa.repeat(part.name, len(part.labels)),
                    "index": torch.arange(len(part.labels)).numpy(),
                    "label": part.labels.numpy(),
                    "wanted": part.wanted.numpy(),
                    "predicted": part.predicted.numpy(),
                    "suspicion": _column(part.suspicion, pa.float32(), len(part.labels)),
                    "flagged": _column(part.flagged, pa.bool_(), len(part.labels)),
                }
            )
            for part in value.predictions
        ]
        parquet.write_table(pa.concat_tables(tables), folder / PREDICTIONS)

    def load(self, folder: Path) -> Score:
        return Score(TestCounts.model_validate_json((folder / "score.json").read_bytes()))


def _column(values: Tensor | None, kind: Any, length: int) -> Any:
    import pyarrow as pa

    return pa.nulls(length, kind) if values is None else pa.array(values.numpy(), kind)
