"""The collector rests while a heavy library loads, and leaves it alone afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from gauntlet.loading import loading


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    was_enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    yield
    (gc.enable if was_enabled else gc.disable)()
    if not frozen:
        gc.unfreeze()


def test_the_collector_rests_meanwhile_and_leaves_what_is_there_alone() -> None:
    gc.enable()
    before = gc.get_freeze_count()
    with loading("a_library_that_nobody_has"):
        assert not gc.isenabled()
        kept: list[list[int]] = [[] for _ in range(10_000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)


def test_what_is_loaded_changes_nothing() -> None:
    gc.enable()
    before = gc.get_freeze_count()
    with loading("pytest"):
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_a_failure_wakes_the_collector_and_one_that_was_off_stays_off() -> None:
    gc.enable()
    with pytest.raises(ImportError), loading("a_library_that_nobody_has"):
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    with loading("a_library_that_nobody_has"):
        pass
    assert not gc.isenabled()
