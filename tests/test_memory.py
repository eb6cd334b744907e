from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gauntlet.errors import LeakError
from gauntlet.guard import Role, acting_as
from gauntlet.memory import Memory


def of(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def test_a_value_is_made_once() -> None:
    memory, made = Memory(), []

    def make() -> int:
        made.append(1)
        return 7

    for _ in range(3):
        assert memory.get(("a", 1), make) == 7
    assert made == [1]
    assert memory.find(("a", 1)) == 7
    assert memory.find(("a", 2)) is None


def test_a_kept_none_is_not_made_again() -> None:
    memory = Memory()
    memory.put("a", None)
    assert memory.get("a", lambda: 1) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=40))
def test_the_latest_stay_within_the_limit(asked: list[tuple[int, int]]) -> None:
    """Against the plain rule: of the distinct names, the last used first, as many as fit; the newest in any case."""
    memory = Memory(limit=20)
    expected: list[tuple[int, int]] = []
    for name, size in asked:
        found = memory.get(name, partial(of, size), lambda value: [value])
        held = [each for each in expected if each[0] == name]
        assert len(found) == (held[0][1] if held else size)
        expected = [(name, len(found)), *(each for each in expected if each[0] != name)]
        while len(expected) > 1 and sum(each[1] for each in expected) > 20:
            expected.pop()
        assert memory.size == sum(each[1] for each in expected)


def test_no_more_values_than_asked_for() -> None:
    memory = Memory(most=2)
    for name in "abca":
        memory.get(name, str)
    assert memory.find("b") is None


@pytest.mark.parametrize("role", [Role.ATTACKER, Role.DEFENDER])
def test_players_may_not_look(role: Role) -> None:
    memory = Memory()
    memory.put("stamped", of(3))
    with acting_as(role):
        with pytest.raises(LeakError):
            memory.get("stamped", lambda: of(3))
        with pytest.raises(LeakError):
            memory.find("stamped")
