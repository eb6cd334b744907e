"""Which worker gets which case, under pytest-xdist."""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]

from gauntlet import hosting

__all__ = ["ByVictim"]


class ByVictim(LoadGroupScheduling):  # type: ignore[misc]
    """Cases of one victim go to one worker, so that no worker waits while another trains it.

    pytest-xdist's own grouping by the `xdist_group` mark travels in node ids, which pytest 9.2 no longer lets it
    change (pytest-xdist issue 1386); here the group is looked up from the case.
    """

    def _split_scope(self, nodeid: str) -> str:
        """The group of a test; pytest-xdist's own for tests that are no cases."""
        return hosting.group_of(self.config, nodeid) or str(super()._split_scope(nodeid))
