"""A session of the bench: the cases that the user asked for, and what it takes to run one and to write it down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from gauntlet.case import Case, label
from gauntlet.compute import choose_device, keep_freed_memory
from gauntlet.costs import Costs
from gauntlet.dataset import facts
from gauntlet.errors import GauntletError, NotApplicableError
from gauntlet.expansion import cells, expand, merged, unmatched
from gauntlet.facts import TaskFacts
from gauntlet.fingerprint import fingerprint
from gauntlet.gates import Verdict, judge
from gauntlet.options import Options
from gauntlet.paths import suite_folders
from gauntlet.pipeline import Context, Outcome, run, victim_key
from gauntlet.plan import Choice, Plan, make_plan
from gauntlet.plugin import name_of
from gauntlet.progress import Progress, Silent
from gauntlet.provenance import provenance
from gauntlet.recorder import unrecorded
from gauntlet.records import Record, Status
from gauntlet.registry import Registry
from gauntlet.settings import changed
from gauntlet.sharing import threads_each
from gauntlet.store import Store
from gauntlet.suite import Suite, find_suite, read_suite
from gauntlet.task import LoadContext, TaskSource
from gauntlet.tensorboard import TensorBoard
from gauntlet.weights import forbid_downloads

__all__ = ["Session", "open_context", "open_session", "settle", "timestamp"]


@dataclass(frozen=True, eq=False)
class Session:
    """cases: in the order in which they run. facts: of every task, by name. warnings: rules that match no case."""

    context: Context
    cases: tuple[Case, ...]
    facts: dict[str, TaskFacts]
    warnings: tuple[str, ...]
    started: str
    _victims: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def by_id(self) -> dict[str, Case]:
        """The cases by their ids."""
        return {case.id: case for case in self.cases}

    @cached_property
    def places(self) -> dict[str, int]:
        """The cases' places in that order, by their ids."""
        return {case.id: place for place, case in enumerate(self.cases)}

    def victims(self, case: Case) -> tuple[str, ...]:
        """The store keys of the case's victims, one a seed."""
        who = (case.task_name, label(case.architecture), label(case.attack), repr(case.recipe), repr(case.seeds))
        if who not in self._victims:
            self._victims[who] = tuple(victim_key(case, seed, self.context) for seed in case.seeds)
        return self._victims[who]

    def plan(self, cases: Sequence[Case], workers: int = 1) -> Plan:
        """What the cases will cost in each of so many processes, which share the cores out."""
        threads = threads_each(workers) if workers > 1 else 0
        return make_plan(cases, self.context, Costs(self.context, self.facts, threads))

    def attempt(self, case: Case, choice: Choice | None = None) -> tuple[Record, Exception | None]:
        """Run the case, unless the budget left it out, and judge it: its record, and the error that stopped it."""
        if choice is not None and case.id in choice.left_out:
            return self.record(case, Verdict(Status.NOT_RUN, choice.left_out[case.id])), None
        try:
            outcome = run(case, self.context)
        except NotApplicableError as reason:
            return self.record(case, Verdict(Status.NOT_APPLICABLE, str(reason))), None
        except GauntletError as error:
            return self.record(case, Verdict(Status.ERROR, str(error))), error
        except SystemExit as stop:
            # Somebody's code wants out of the process, in which other cases wait.
            exited = GauntletError(f"sys.exit({stop.code!r}) was called in the case; raise an exception instead")
            return self.record(case, Verdict(Status.ERROR, str(exited))), exited
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return self.record(case, Verdict(Status.ERROR, text)), error
        return self.record(case, judge(case, outcome.scores), outcome), None

    def record(self, case: Case, verdict: Verdict, outcome: Outcome | None = None) -> Record:
        """The leaderboard's cell."""
        return Record(
            id=case.id,
            suite=case.suite,
            task=case.task_name,
            architecture=label(case.architecture),
            attack=name_of(case.attack),
            attack_settings=changed(case.attack),
            family=case.attack.family,
            defense=name_of(case.defense),
            defense_settings=changed(case.defense),
            stage=case.defense.stage,
            reserve=case.reserve,
            status=verdict.status,
            reason=verdict.reason,
            expected=case.expected,
            seeds=case.seeds,
            scores=outcome.scores if outcome else (),
            gate=case.gate,
            costs=outcome.costs if outcome else (),
            parts=case.parts,
            place=self.places[case.id],
            provenance=provenance(
                self.facts[case.task_name], self.context.device, self.started, self.context.registry.files
            ),
        )


def timestamp() -> str:
    """The time, as records keep it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def open_context(options: Options, warn: Callable[[str], None], progress: Progress | None = None) -> Context:
    """Find the plug-ins and open the store. Raises GauntletError.

    warn gets one sentence when the store meets a damaged entry or can't keep one, and when curves can't be written.
    """
    keep_freed_memory()
    forbid_downloads(options.offline)
    return Context(
        store=Store(options.store, warn, read_only=options.plan),
        registry=Registry.discover(options.plugins),
        device=choose_device(options.device),
        load=LoadContext(options.data_dir, options.offline),
        progress=progress or Silent(),
        recompute=options.recompute,
        recorder=TensorBoard(options.tensorboard, warn) if options.tensorboard else unrecorded,
    )


def open_session(options: Options, warn: Callable[[str], None], progress: Progress | None = None) -> Session:
    """Find the plug-ins, read the suites, expand and check their cases; the rest as `open_context`. Trains nothing."""
    context = open_context(options, warn, progress)
    registry = context.registry
    known: dict[str, TaskFacts] = {}

    def facts_of(source: TaskSource, name: str) -> TaskFacts:
        context.claim(name, source)
        if name not in known:
            known[name] = facts(source, name, context.store, context.load, context.progress.step)
        return known[name]

    suites = [read_suite(find_suite(name, suite_folders())) for name in options.suites]
    forced: dict[str, object] = {"compile": True} if options.compile else {}
    cases = merged(
        expand(suite, registry, facts_of, tasks=options.tasks, seeds=options.seeds, recipe=forced) for suite in suites
    )
    settle(cases)
    warnings = [text for suite in suites for text in _unmatched(suite, registry)]
    return Session(context, tuple(cases), known, tuple(warnings), timestamp())


def settle(cases: Sequence[Case]) -> None:
    """Read the code of every step now: what runs later is what was loaded now, even when its file changes meanwhile."""
    parts = (part for case in cases for part in (case.attack, case.architecture, case.defense))
    for module in dict.fromkeys(type(part).__module__ for part in parts):
        fingerprint(module)
    fingerprint("gauntlet.mounting", "gauntlet.defending", "gauntlet.scoring", "gauntlet.toolbox")


def _unmatched(suite: Suite, registry: Registry) -> list[str]:
    """Judged on the suite's own tasks, so that `--task` makes no rule look useless."""
    return unmatched(suite, [cell.subject for block in suite.blocks for cell in cells(block, registry)])
