"""Facts, suites, cases and scores for tests that train nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gauntlet.case import Case
from gauntlet.facts import TaskFacts
from gauntlet.plugin import Kind
from gauntlet.recipe import Recipe
from gauntlet.records import BackdoorCounts, Counts, Gate, Poison, SeedScore
from gauntlet.registry import Registry
from gauntlet.suite import Suite, read_suite

REGISTRY = Registry.discover()

TINY = """
tasks = ["digits"]
seeds = [0]
architectures = ["shallow_net"]
attacks = ["none", "badnets"]
defenses = ["fine_tuning"]
"""


def facts(name: str = "digits", shape: tuple[int, int, int] = (1, 28, 28)) -> TaskFacts:
    return TaskFacts(
        name=name,
        shape=shape,
        class_names=tuple("0123456789"),
        train_counts=(100,) * 10,
        reserve_counts=(20,) * 10,
        test_counts=(40,) * 10,
        hash="0" * 64,
        provenance="made up",
    )


def suite(folder: Path, text: str = TINY, name: str = "tiny") -> Suite:
    file = folder / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    return read_suite(file)


def case(attack: str = "badnets", defense: str = "none", gate: Gate | None = None) -> Case:
    return Case(
        suite="tiny",
        task_name="digits",
        task=REGISTRY.task("digits"),
        architecture=REGISTRY.build(Kind.MODEL, "shallow_net", {}),
        attack=REGISTRY.build(Kind.ATTACK, attack, {}),
        defense=REGISTRY.build(Kind.DEFENSE, defense, {}),
        recipe=Recipe(epochs=1),
        reserve=100,
        seeds=(0,),
        gate=gate or Gate(),
    )


def backdoor(asr: Counts, name: str) -> BackdoorCounts:
    return BackdoorCounts(
        name=name,
        asr=asr,
        asr_inclusive=asr,
        untriggered=Counts(hits=0, n=asr.n),
        robust=Counts(hits=asr.n - asr.hits, n=asr.n),
        by_class=(asr,),
    )


def score(
    asr: Sequence[int] = (90,),
    n: int = 100,
    clean: int = 95,
    undefended_asr: Sequence[int] = (),
    undefended_clean: int = 95,
) -> SeedScore:
    """Hits of 100 clean images and of `n` triggered ones for each backdoor; undefended the same unless given."""
    return SeedScore(
        seed=0,
        clean=Counts(hits=clean, n=100),
        clean_by_class=(Counts(hits=clean, n=100),),
        backdoors=tuple(backdoor(Counts(hits=hits, n=n), f"backdoor {place}") for place, hits in enumerate(asr)),
        poison=Poison(total=1, train_size=10, by_class=(1,), effective=1),
        undefended_clean=Counts(hits=undefended_clean, n=100),
        undefended_asr=tuple(Counts(hits=hits, n=n) for hits in undefended_asr or asr),
    )


def seeds_of(one: SeedScore, count: int) -> list[SeedScore]:
    return [one.model_copy(update={"seed": seed}) for seed in range(count)]
