"""Which worker gets which case, under pytest-xdist."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]

from gauntlet import hosting

__all__ = ["ByVictim"]


class ByVictim(LoadGroupScheduling):  # type: ignore[misc]
    """Cases of one victim go to one worker, so that no worker waits while another trains it.

    pytest-xdist's own grouping by the `xdist_group` mark travels in node ids, which pytest 9.2 no longer lets it
    change (pytest-xdist issue 1386); here the group is looked up from the case. Its own would also give a test that
    kills its worker to the next one, and the next, until no worker may be replaced any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        """The group of a test; pytest-xdist's own for tests that are no cases."""
        return hosting.group_of(self.config, nodeid) or str(super()._split_scope(nodeid))

    def remove_node(self, node: Any) -> str | None:
        """The test that was under way when the worker died, if one was; others that it was to run go to the next."""
        units = self.assigned_work[node]
        fatal = next(((unit, name) for unit in units.values() for name, done in unit.items() if not done), None)
        if fatal is not None:
            unit, name = fatal
            unit[name] = True
        # A finished unit in the queue would be handed out, and no report of it would ever ask for the next.
        self.assigned_work[node] = {scope: unit for scope, unit in units.items() if not all(unit.values())}
        super().remove_node(node)
        return None if fatal is None else fatal[1]

    def _reschedule(self, node: Any) -> None:
        """A worker begins a test when it knows the next one: while there is another, it is given more than one.

        One that takes the place of a dead one and still collects asks again when it has; xdist's own would fail.
        """
        if node not in self.registered_collections:
            return
        super()._reschedule(node)
        while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)
