from __future__ import annotations

import pytest

from gauntlet.judged import Judged
from gauntlet.records import Status
from tests.sample_records import record


def outcome(status: Status, *, expected: str = "", strict: bool = False) -> str:
    """What becomes of the test: passed, failed, skipped or xfailed, with the message."""
    judged = Judged(record(status=status, reason="the reason", expected=expected), strict)
    try:
        judged.check()
    except pytest.xfail.Exception as error:
        return f"xfailed: {error}"
    except pytest.fail.Exception as error:
        return f"failed with a traceback: {error}" if error.pytrace else f"failed: {error}"
    except pytest.skip.Exception as error:
        return f"skipped: {error}"
    return "passed"


@pytest.mark.parametrize(
    ("status", "lenient", "strict"),
    [
        (Status.PASS, "passed", "passed"),
        (Status.FAIL, "failed: the reason", "failed: the reason"),
        (Status.COLLAPSED, "failed: the reason", "failed: the reason"),
        (Status.MARGINAL, "passed", "failed: the reason"),
        (Status.ATTACK_FAILED, "skipped: the reason", "failed: the reason"),
    ],
)
def test_statuses(status: Status, lenient: str, strict: str) -> None:
    assert outcome(status) == lenient
    assert outcome(status, strict=True) == strict


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("status", "what"),
    [
        (Status.FAIL, "xfailed: known"),
        (Status.COLLAPSED, "xfailed: known"),
        (Status.MARGINAL, "xfailed: known"),
        (Status.PASS, "failed: the case keeps its gate now: take its expected failure (known) out of the suite"),
    ],
)
def test_expected_failures(status: Status, what: str, strict: bool) -> None:
    assert outcome(status, expected="known", strict=strict) == what


def test_a_failed_attack_fulfils_no_expectation() -> None:
    assert outcome(Status.ATTACK_FAILED, expected="known") == "skipped: the reason"
