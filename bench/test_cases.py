"""Every case of the chosen suites: `pytest bench`, `pytest bench --suite digits -k clean_label`."""

from __future__ import annotations

from gauntlet.pytest_plugin import Judged


def test_case(outcome: Judged) -> None:
    """The case keeps its gate."""
    outcome.check()
