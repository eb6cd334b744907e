"""Running an audit: every case, the choice of the best repair, and the files that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gauntlet.audit.bundle import save_bundle
from gauntlet.audit.setup import Audit
from gauntlet.case import Case, label
from gauntlet.compute import deterministic
from gauntlet.defending import Defended, defend
from gauntlet.defense import Inspection, Stage
from gauntlet.gates import Verdict
from gauntlet.keys import key
from gauntlet.mounting import mount, victim_spec
from gauntlet.network import Network
from gauntlet.pipeline import tools_for
from gauntlet.records import Gate, Record, Status
from gauntlet.results import ResultsWriter
from gauntlet.summary import BackdoorFigures, Figures, defense_label, figures
from gauntlet.wording import percent, rate_text

__all__ = ["AuditResult", "Repaired", "guessing", "perform", "untouched"]

CLEAN_LOSS = 0.05
"""Clean accuracy that a repair may cost unless the user says otherwise."""
_INTERRUPTED = "interrupted"


@dataclass(frozen=True, eq=False)
class Repaired:
    """The repair that was chosen. why: in one sentence. files: what was written of it."""

    case: Case
    why: str
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class AuditResult:
    """records: one a case, in their order. inspections: what model verdicts recovered, by case id. best: None where no
    repair passes the gate. chance: the share of the clean images that the most frequent class has, where the model is
    not surely better than that. interrupted: by the user.
    """

    records: tuple[Record, ...]
    inspections: dict[str, Inspection] = field(default_factory=dict)
    best: Repaired | None = None
    chance: float | None = None
    interrupted: bool = False

    @property
    def works(self) -> tuple[str, ...]:
        """The backdoors that the model surely has: its triggers succeed on more than half of the images, and on more
        than go to the target without them, beyond what 95 % intervals leave open.
        """
        found = untouched(self.records[0])
        return tuple(each.name for each in (found.backdoors if found else ()) if _works(each))

    @property
    def broken(self) -> tuple[Record, ...]:
        """Of the cases that came to no result though they should have."""
        return tuple(record for record in self.records if record.status in (Status.ERROR, Status.NOT_RUN))

    @property
    def unchecked(self) -> str:
        """Why nobody could look for a backdoor in this model, in a few words; '' where somebody could."""
        if self.chance is not None:
            return "the model may only be guessing, so that no verdict and no trigger says anything of it"
        found = untouched(self.records[0])
        tried = any(each.asr.n for each in (found.backdoors if found else ()))
        if tried or self.suspects:
            return ""
        return "there was no answer of a model verdict and no image with a trigger; drop --only, or give --trigger"

    @property
    def suspects(self) -> dict[str, tuple[int, ...]]:
        """The classes that each model verdict calls targets, by the defense with its settings; verdicts that name none
        as well.
        """
        verdicts = {
            defense_label(record): [score.verdict for score in record.scores if score.verdict]
            for record in self.records
        }
        return {
            name: tuple(sorted({suspect for verdict in found for suspect in verdict.suspects}))
            for name, found in verdicts.items()
            if found
        }


def untouched(first: Record) -> Figures | None:
    """The figures of the model as it was handed over, from its record: of one seed, since every seed measures the same
    model on the same images, which are no more for that.
    """
    return figures(first.model_copy(update={"scores": first.scores[:1]}))


def _works(backdoor: BackdoorFigures) -> bool:
    least, _ = backdoor.asr.interval
    _, untriggered = backdoor.untriggered.interval if backdoor.untriggered.n else (0.0, 0.0)
    return least > max(0.5, untriggered)


def perform(
    audit: Audit, writer: ResultsWriter, tell: Callable[[Record], None], warn: Callable[[str], None]
) -> AuditResult:
    """Run the undefended case, set the gate by it, run the others, choose and export a repair.

    Every record is written through at once, and told. A case that fails leaves its error in its record; an interrupted
    audit has its other cases not run. warn gets a sentence where the model's answers are no better than a guess.
    """
    cases = list(audit.session.cases)
    records: list[Record] = []
    chance: float | None = None

    def keep(record: Record) -> Record:
        writer.append(record)
        records.append(record)
        tell(record)
        return record

    def leave(reason: str) -> None:
        for case in cases[len(records) :]:
            keep(audit.session.record(case, Verdict(Status.NOT_RUN, reason)))

    try:
        first = keep(audit.session.attempt(cases[0])[0])
        if first.status is Status.ERROR:
            # Without the model itself nothing can be said.
            leave(first.reason)
            return AuditResult(tuple(records))
        gate = _gate(audit, first)
        cases = [cases[0], *(replace(case, gate=gate) for case in cases[1:])]
        chance = _chance(audit, first)
        if chance is not None:
            warn(guessing(first, chance))
        for case in cases[1:]:
            keep(audit.session.attempt(case)[0])
        inspections = dict(_inspections(audit, cases[1:], records[1:]))
        # Beside a model that guesses, every repair is as good as it.
        best = _best(audit, cases[1:], records, writer.folder) if chance is None else None
        return AuditResult(tuple(records), inspections, best, chance)
    except KeyboardInterrupt:
        leave(_INTERRUPTED)
        inspections = dict(_inspections(audit, cases[1:], records[1:]))
        return AuditResult(tuple(records), inspections, chance=chance, interrupted=True)


def _chance(audit: Audit, first: Record) -> float | None:
    """The most frequent class's share of the evaluator's images, where the model as it is may be no better."""
    found = untouched(first)
    counts = audit.facts.test_counts
    share = max(counts) / sum(counts)
    return share if found is None or found.clean.interval[0] <= share else None


def guessing(first: Record, chance: float) -> str:
    """One sentence for a model whose undefended record shows nothing learnt."""
    found = untouched(first)
    if found is None:
        raise AssertionError("a model that could not be scored is not compared with a guess")
    return (
        f"The model as it was handed over is right on {rate_text(found.clean)} % of {found.clean.n} clean images, and "
        f"whoever always answers their most frequent class on {percent(chance)} %: nothing else that is said here "
        "means anything before the labels, their order, --input-range, and the images' layout and value_range "
        "(--data-setting) are checked."
    )


def _gate(audit: Audit, first: Record) -> Gate:
    found = figures(first)
    if found is None:
        raise AssertionError("a model that could not be scored has no gate")
    lowest = max(0.0, round(found.clean.value - CLEAN_LOSS, 3))
    return Gate(
        min_clean_accuracy=lowest if audit.request.min_clean is None else audit.request.min_clean,
        max_asr=audit.request.max_asr if found.backdoors else None,
    )


def _defended(audit: Audit, case: Case) -> Defended:
    """What the defense left behind for the first seed, from the store."""
    tools = tools_for(case, case.seeds[0], audit.session.context)
    with deterministic():
        mounted = mount(case.attack, tools)
        victim = key(victim_spec(case.attack, tools))
        return defend(case.defense, case.attack, mounted, victim, case.reserve, tools).value


def _inspections(audit: Audit, cases: Sequence[Case], records: Sequence[Record]) -> Iterator[tuple[str, Inspection]]:
    for case, record in zip(cases, records, strict=True):
        if case.defense.stage is Stage.MODEL_VERDICT and record.scores:
            found = _defended(audit, case).inspection
            if found is not None:
                yield case.id, found


def _best(audit: Audit, cases: Sequence[Case], records: Sequence[Record], folder: Path) -> Repaired | None:
    """Of the repairs that pass the gate the one with the lowest worst ASR, then the highest clean accuracy; where no
    trigger is known, the first of the suite.
    """
    passed = [
        (place, case, record)
        for place, (case, record) in enumerate(zip(cases, records[1:], strict=True))
        if record.status is Status.PASS
        and case.defense.stage in (Stage.REPAIR, Stage.MODEL_VERDICT)
        and _changes(audit, case)
    ]
    if not passed:
        return None
    known = any(score.backdoors for score in records[0].scores)

    def merit(entry: tuple[int, Case, Record]) -> tuple[float, float, int]:
        place, _, record = entry
        found = figures(record)
        if found is None or found.worst is None:
            return 0.0, 0.0, place
        return found.worst.asr.value, -found.clean.value, place

    _, case, _ = min(passed, key=merit)
    of = f"of {len(passed)} repairs that pass the gate"
    why = (
        f"{label(case.defense)} has the lowest ASR {of}"
        if known
        else f"{label(case.defense)} comes first in the suite {of}; without a trigger nobody can say which removes it"
    )
    return Repaired(case, why, tuple(_export(audit, case, folder)))


def _changes(audit: Audit, case: Case) -> bool:
    """Whether there is a network other than the handed-over one to export: a verdict may find nothing to repair."""
    return case.defense.stage is Stage.REPAIR or _is_new(_defended(audit, case).network, _victim(audit, case))


def _is_new(network: Network, victim: Network) -> bool:
    before, after = victim.state_dict(), network.state_dict()
    return any(not after[name].equal(value) for name, value in before.items())


def _victim(audit: Audit, case: Case) -> Network:
    return mount(case.attack, tools_for(case, case.seeds[0], audit.session.context)).value.network


def _export(audit: Audit, case: Case, folder: Path) -> list[Path]:
    repaired, victim = _defended(audit, case).network, _victim(audit, case)
    alone = save_bundle(folder / "repaired", case.architecture, audit.facts, (repaired,))
    return alone + save_bundle(folder / "n_plus_1", case.architecture, audit.facts, (victim, repaired))
