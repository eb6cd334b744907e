"""Every case of the chosen suites: `pytest bench`, `pytest bench --suite digits -k clean_label`."""

from __future__ import annotations

import pytest

from gauntlet.pytest_plugin import Judged

# A verdict doesn't hang on a plug-in's warnings, whatever the rest of the project makes of them.
pytestmark = pytest.mark.filterwarnings("default")


def test_case(outcome: Judged) -> None:
    """The case keeps its gate."""
    outcome.check()
