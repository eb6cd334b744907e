from __future__ import annotations

import hashlib
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gauntlet.errors import SettingError
from gauntlet.keys import canonical, key

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values: st.SearchStrategy[Json] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def typed(value: Json) -> object:
    """Equality that tells 1, 1.0 and True apart, as a key must."""
    if isinstance(value, dict):
        return {name: typed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value).__name__, repr(value)


def shuffled(value: Json, chance: random.Random) -> Json:
    if isinstance(value, list):
        return [shuffled(item, chance) for item in value]
    if not isinstance(value, dict):
        return value
    names = list(value)
    chance.shuffle(names)
    return {name: shuffled(value[name], chance) for name in names}


@given(values)
def test_canonical_text_means_the_value(value: Json) -> None:
    text = canonical(value)
    assert typed(json.loads(text)) == typed(value)
    assert text.isascii()


@given(values, st.randoms(use_true_random=False))
def test_order_of_names_does_not_matter(value: Json, chance: random.Random) -> None:
    assert canonical(shuffled(value, chance)) == canonical(value)


@given(values, values)
def test_different_values_have_different_texts(one: Json, other: Json) -> None:
    assert (canonical(one) == canonical(other)) == (typed(one) == typed(other))


def test_key_is_the_sha256_of_the_text() -> None:
    assert canonical({"b": (1, 2.5), "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5]}'
    assert key({"b": (1, 2.5), "a": "é"}) == hashlib.sha256(b'{"a":"\\u00e9","b":[1,2.5]}').hexdigest()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_key_holds_what_is_not_a_number(number: float) -> None:
    with pytest.raises(SettingError, match=r"value\.recipe\[1\] = .* finite"):
        canonical({"recipe": [0.1, number]})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", {1: "a whole number as a name"}])
def test_no_key_holds_what_json_can_not(value: object) -> None:
    with pytest.raises(TypeError, match="value"):
        canonical({"setting": value})
