"""The planner: what the cases will cost, steps that they share counted once, and which of them fit into a budget."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property

from tabulate import tabulate

from gauntlet.attack import Family
from gauntlet.case import Case
from gauntlet.costs import Basis, Costs, StepCost
from gauntlet.gates import is_undefended
from gauntlet.pipeline import Context, steps
from gauntlet.plugin import name_of
from gauntlet.wording import duration

__all__ = ["Choice", "Plan", "Planned", "choose", "counted", "make_plan", "plan_text"]

_Key = tuple[str, str]


@dataclass(frozen=True)
class Planned:
    """A case and what each of its steps will cost."""

    case: Case
    costs: tuple[StepCost, ...]

    @cached_property
    def missing(self) -> dict[_Key, float]:
        """Seconds of each step that is not cached, by kind and key, and of each shared training, by its name."""
        steps = {(cost.step.kind, cost.step.key): cost.seconds for cost in self.costs if cost.basis is not Basis.CACHED}
        trainings = {("training", cost.training[0]): cost.training[1] for cost in self.costs if cost.training}
        return steps | trainings

    @property
    def seconds(self) -> float:
        """Seconds of the case if it ran alone."""
        return sum(self.missing.values())

    def seconds_after(self, done: Iterable[_Key]) -> float:
        """Seconds of the case once the steps `done` are there."""
        there = set(done)
        return sum(seconds for key, seconds in self.missing.items() if key not in there)

    @property
    def cached(self) -> str:
        """`3/12`: steps that are there, of all distinct ones."""
        distinct = {(cost.step.kind, cost.step.key) for cost in self.costs}
        return f"{len(distinct - self.missing.keys())}/{len(distinct)}"

    @property
    def victims(self) -> dict[str, bool]:
        """The keys of the case's victims, and whether each is cached."""
        return {cost.step.key: cost.basis is Basis.CACHED for cost in self.costs if cost.step.kind == "victim"}


@dataclass(frozen=True)
class Plan:
    """The planned cases, in the order in which they run."""

    cases: tuple[Planned, ...]

    @property
    def seconds(self) -> float:
        """Seconds of all cases, shared steps counted once."""
        merged: dict[_Key, float] = {}
        for planned in self.cases:
            merged |= planned.missing
        return sum(merged.values())

    def wall(self, workers: int) -> float:
        """Seconds until `workers` processes are done: each runs all cases of a victim, and then those of the next, the
        victims of many cases first, as pytest-xdist orders them; what another is making already, it waits for.
        """
        waiting = deque(self._groups())
        ready: dict[_Key, float] = {}
        clocks: list[tuple[float, int, Iterator[tuple[_Key, float]]]] = [(0.0, one, iter(())) for one in range(workers)]
        finished = 0.0
        while clocks:
            now, worker, steps = heapq.heappop(clocks)
            step = next(steps, None)
            if step is not None:
                now = max(now, ready.setdefault(step[0], now + step[1]))
            elif waiting:
                steps = iter(waiting.popleft().items())
            else:
                finished = max(finished, now)
                continue
            heapq.heappush(clocks, (now, worker, steps))
        return finished

    def _groups(self) -> list[dict[_Key, float]]:
        """Each victim's steps, of all its cases in order."""
        groups: dict[str, list[Planned]] = {}
        for planned in self.cases:
            groups.setdefault(next(iter(planned.victims), planned.case.id), []).append(planned)
        largest_first = sorted(groups.values(), key=len, reverse=True)
        return [{key: cost for one in group for key, cost in one.missing.items()} for group in largest_first]

    @property
    def basis(self) -> Basis:
        """The least sure ground that an estimate stands on."""
        return max((cost.basis for planned in self.cases for cost in planned.costs), key=list(Basis).index)


@dataclass(frozen=True)
class Choice:
    """What fits into a budget. left_out: id to the sentence that the leaderboard shows."""

    kept: tuple[Case, ...]
    left_out: dict[str, str]
    seconds: float


def make_plan(cases: Sequence[Case], context: Context, costs: Costs) -> Plan:
    """The cases with the cost of each step; nothing is trained."""
    return Plan(tuple(Planned(case, tuple(_costs(case, context, costs))) for case in cases))


def _costs(case: Case, context: Context, costs: Costs) -> Iterator[StepCost]:
    defended = False
    for step in steps(case, context):
        # Of one seed, the score that follows the defense is the defended one.
        defended = step.kind == "defended" or (defended and step.kind == "score")
        yield costs.of(step, case, defended=defended)


def choose(plan: Plan, budget: float) -> Choice:
    """The most useful cases that `budget` seconds pay for.

    What is cached comes first, since it costs nothing, then undefended rows (controls before attacks), then every
    defense's first case before any defense's second, the cheaper one first. Steps that cases share are paid once.
    """
    done: set[_Key] = set()
    spent = 0.0
    kept: set[str] = set()
    left_out: dict[str, str] = {}
    for planned in _by_use(plan):
        extra = planned.seconds_after(done)
        if extra and spent + extra > budget:
            left_out[planned.case.id] = (
                f"left out by the budget of {duration(budget)}: it would take another {duration(extra)}"
            )
            continue
        spent += extra
        done |= planned.missing.keys()
        kept.add(planned.case.id)
    return Choice(tuple(one.case for one in plan.cases if one.case.id in kept), left_out, spent)


def _by_use(plan: Plan) -> list[Planned]:
    turns: dict[str, int] = {}
    ranked = []
    for planned in sorted(plan.cases, key=lambda one: (one.case.attack.family is not Family.CONTROL, one.seconds)):
        defense = name_of(planned.case.defense)
        turns[defense] = turns.get(defense, 0) + 1
        turn = 0 if is_undefended(planned.case) else turns[defense]
        ranked.append((planned.seconds > 0, turn, planned))
    return [planned for _, _, planned in sorted(ranked, key=lambda one: one[:2])]


def counted(cases: Sized) -> str:
    """`1 case`, `24 cases`."""
    return "1 case" if len(cases) == 1 else f"{len(cases)} cases"


def plan_text(plan: Plan, choice: Choice | None = None, *, workers: int = 1, startup: float) -> str:
    """The table of `--plan`: each case, its cached steps, its cost alone and after the ones above, and the total.

    workers: processes that will share the work; startup: seconds before the first case, told beside the total.
    """
    done: set[_Key] = set()
    rows = []
    left_out = choice.left_out if choice else {}
    for planned in plan.cases:
        out = planned.case.id in left_out
        rows.append(
            [
                planned.case.id,
                planned.cached,
                duration(planned.seconds),
                "left out" if out else duration(planned.seconds_after(done)),
                max((cost.basis for cost in planned.costs), key=list(Basis).index),
            ]
        )
        if not out:
            done |= planned.missing.keys()
    table = tabulate(
        rows, ["case", "cached steps", "alone", "here", "estimate"], tablefmt="simple", disable_numparse=True
    )
    return f"{table}\n\n{_total(plan, choice, workers, startup)}"


def _total(plan: Plan, choice: Choice | None, workers: int, startup: float) -> str:
    victims: dict[str, bool] = {}
    for planned in plan.cases:
        victims |= planned.victims
    total = f"{counted(plan.cases)}, {sum(victims.values())} of {len(victims)} victims cached"
    if choice is not None:
        total += f"; {len(choice.kept)} fit into the budget"
        plan = Plan(tuple(planned for planned in plan.cases if planned.case.id not in choice.left_out))
    shared = f" on {workers} workers" if workers > 1 else ""
    return f"{total}, about {duration(plan.wall(workers))} to go{shared}, and {duration(startup)} to start"
