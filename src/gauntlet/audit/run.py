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
from gauntlet.summary import defense_label, figures

__all__ = ["AuditResult", "Repaired", "perform"]

CLEAN_LOSS = 0.05
"""Clean accuracy that a repair may cost unless the user says otherwise."""


@dataclass(frozen=True, eq=False)
class Repaired:
    """The repair that was chosen. why: in one sentence. files: what was written of it."""

    case: Case
    why: str
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class AuditResult:
    """records: one a case, in their order. inspections: what model verdicts recovered, by case id. best: None where no
    repair passes the gate.
    """

    records: tuple[Record, ...]
    inspections: dict[str, Inspection] = field(default_factory=dict)
    best: Repaired | None = None

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


def perform(audit: Audit, writer: ResultsWriter, tell: Callable[[Record], None]) -> AuditResult:
    """Run the undefended case, set the gate by it, run the others, choose and export a repair.

    Every record is written through at once, and told. A case that fails leaves its error in its record.
    """
    cases = list(audit.session.cases)
    records: list[Record] = []

    def keep(record: Record) -> Record:
        writer.append(record)
        tell(record)
        records.append(record)
        return record

    first = keep(audit.session.attempt(cases[0])[0])
    if first.status is Status.ERROR:
        # Without the model itself nothing can be said.
        for case in cases[1:]:
            keep(audit.session.record(case, Verdict(Status.NOT_RUN, first.reason)))
        return AuditResult(tuple(records))
    gate = _gate(audit, first)
    gated = [replace(case, gate=gate) for case in cases[1:]]
    for case in gated:
        keep(audit.session.attempt(case)[0])
    inspections = dict(_inspections(audit, gated, records[1:]))
    return AuditResult(tuple(records), inspections, _best(audit, gated, records, writer.folder))


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
