"""The steps that the store remembers: what each was, on which machine, and what it took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gauntlet import entry
from gauntlet.entry import DamagedError, Manifest
from gauntlet.store import Store

__all__ = ["Past", "history"]

_STEPS = ("victim", "defended", "score")
_TRAINING = "training"


@dataclass(frozen=True)
class Past:
    """A step that was measured.

    player: the attack or the defense with its settings; a score has the defense that it judges, none the undefended.
    seconds: its own. trainings: the keys of the shared trainings inside it, with the seconds that each took when it
    was made. machine, threads: where it ran.
    """

    kind: str
    task: str
    device: str
    machine: str
    threads: int
    torch: str
    architecture: Mapping[str, Any]
    recipe: Mapping[str, Any]
    player: Mapping[str, Any]
    victim: str
    seed: int
    seconds: float
    trainings: Mapping[str, float]

    @property
    def whole(self) -> float:
        """The seconds with those of its trainings."""
        return self.seconds + sum(self.trainings.values())

    @property
    def epochs(self) -> float:
        """What the seconds grow with: the recipe's epochs; 1 for a score."""
        return 1.0 if self.kind == "score" else float(self.recipe.get("epochs", 1.0))


def history(store: Store) -> list[Past]:
    """Every victim, defended network and score of the store whose victim is still there."""
    manifests = list(_manifests(store))
    by_name = {f"{one.kind}/{one.key}": one for one in manifests}
    steps = [one for one in manifests if one.kind in _STEPS]
    return [_past(one, victim, by_name) for one in steps if (victim := _victim_of(one, by_name)) is not None]


def _manifests(store: Store) -> Iterator[Manifest]:
    for kind, key, folder in store.folders((*_STEPS, _TRAINING)):
        with suppress(DamagedError):
            yield entry.read(folder, kind, key)


def _victim_of(one: Manifest, by_name: Mapping[str, Manifest]) -> Manifest | None:
    if one.kind == "victim":
        return one
    network = one.spec.get("network", one.key)
    defended = by_name.get(f"defended/{network}")
    return by_name.get(f"victim/{defended.spec['victim'] if defended else network}")


def _past(one: Manifest, victim: Manifest, by_name: Mapping[str, Manifest]) -> Past:
    trained = [name for name in one.inner if name.startswith(f"{_TRAINING}/") and name in by_name]
    return Past(
        kind=one.kind,
        task=victim.spec["task"],
        device=victim.spec["device"],
        machine=one.machine,
        threads=one.threads,
        torch=one.versions.get("torch", ""),
        architecture=victim.spec["architecture"],
        recipe=victim.spec["recipe"],
        player=one.spec.get("attack" if one.kind == "victim" else "defense") or {},
        victim=victim.key,
        seed=victim.spec.get("seed", 0),
        seconds=one.own_seconds,
        trainings={name: by_name[name].seconds for name in trained},
    )
