from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gauntlet.audit.request import Suspicion, parse_trigger
from gauntlet.errors import SettingError


@given(
    st.integers(0, 999),
    st.integers(0, 999),
    st.none() | st.integers(0, 1282),
    st.sampled_from(["a.png", "b@c.png", "d:e/f"]),
)
def test_what_was_written_is_what_is_read(x: int, y: int, target: int | None, name: str) -> None:
    text = f"{name}@{x},{y}" + ("" if target is None else f":{target}")

    assert parse_trigger(text) == Suspicion(Path(name), x, y, target)


@pytest.mark.parametrize("text", ["", "a.png", "a.png@", "a.png@1", "a.png@1,2,3", "@1,2", "a.png@x,y", "a.png@1,2:"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="legal: PICTURE@X,Y or PICTURE@X,Y:TARGET"):
        parse_trigger(text)


@pytest.mark.parametrize("text", ["a.png@-1,2", "a.png@1,-2", "a.png@1,2:-3"])
def test_negative_numbers_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="counted from 0"):
        parse_trigger(text)
