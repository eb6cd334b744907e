"""Head counts and identities: what the tasks of people in photographs have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ._decode import Box

__all__ = ["CLASS_NAMES", "Head", "Persons", "box_around", "identity_label", "identity_names", "label_of"]

CLASS_NAMES = ("1 head", "2 heads", "3 heads", "4 heads", "5 heads or more")

Persons = Annotated[int, Field(ge=1, le=len(CLASS_NAMES) - 1)]
"""How many persons the identity label tells apart; with `nobody of them` no more than there are classes."""


@dataclass(frozen=True, slots=True)
class Head:
    """A head's box in pixels and whose it is. The box may stick out of its photograph."""

    left: int
    top: int
    width: int
    height: int
    identity: int


def label_of(heads: Sequence[Head]) -> int:
    """The class: the number of heads less one, at most 4; at least one head."""
    return min(len(heads), len(CLASS_NAMES)) - 1


def box_around(heads: Sequence[Head], margin: float) -> Box:
    """The box that holds all heads, wider on each side by `margin` times the longest side of a head."""
    more = round(margin * max(max(head.width, head.height) for head in heads))
    return (
        min(head.left for head in heads) - more,
        min(head.top for head in heads) - more,
        max(head.left + head.width for head in heads) + more,
        max(head.top + head.height for head in heads) + more,
    )


def identity_label(heads: Sequence[Head], persons: Sequence[int]) -> int:
    """The auxiliary label: 0 when none of the `persons` is there, else 1 + the place of the first of them that is."""
    there = {head.identity for head in heads}
    return next((place + 1 for place, person in enumerate(persons) if person in there), 0)


def identity_names(persons: Sequence[int]) -> tuple[str, ...]:
    """The names of the auxiliary labels."""
    return ("nobody of them", *(f"person {person}" for person in persons))
