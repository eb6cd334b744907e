"""What a test gets: the record of its case, and the check that lets it fail with one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gauntlet.records import Record

__all__ = ["Judged"]


@dataclass(frozen=True)
class Judged:
    """What the `outcome` fixture gives. strict: --strict-gates."""

    record: Record
    strict: bool

    def check(self) -> None:
        """Let the test fail, with one sentence, when the case breaks its gate.

        A case that the suite expects to fail is xfailed, and fails when it keeps its gate after all. A failed attack
        says nothing of the defense, so that the test is skipped; under --strict-gates it fails, and so does a
        marginal case.
        """
        __tracebackhide__ = True
        status, reason, expected = str(self.record.status), self.record.reason, self.record.expected
        broken = status in ("fail", "collapsed")
        if expected and (broken or status == "marginal"):
            pytest.xfail(expected)
        if expected and status == "pass":
            reason = f"the case keeps its gate now: take its expected failure ({expected}) out of the suite"
            pytest.fail(reason, pytrace=False)
        if broken or (self.strict and status in ("marginal", "attack-failed")):
            pytest.fail(reason, pytrace=False)
        if status == "attack-failed":
            pytest.skip(reason)
