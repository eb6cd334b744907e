"""How many classes labels of unknown origin make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from gauntlet.errors import DataError

__all__ = ["Classes", "class_count"]

_MOST = 1_000_000

Classes = Annotated[int, Field(ge=2, le=_MOST)]
"""The number of classes of a task, for data in which not every one occurs."""


def class_count(parts: Sequence[tuple[str, Tensor]], classes: int | None) -> int:
    """`classes`, or else one more than the highest label, int64 [N] each, of the parts with their names.

    DataError for a label that is not below `classes`; without `classes`, for one that is not below the number of
    images: it would make more classes than images.
    """
    limit = sum(len(labels) for _, labels in parts) if classes is None else classes
    for where, labels in parts:
        wrong = ((labels < 0) | (labels >= limit)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            found = f"{where}: label {int(labels[row])} of image {row} is out of range; legal: 0 to {limit - 1}"
            raise DataError(found if classes is not None else f"{found}, or give the number of `classes`")
    return classes or 1 + max(int(labels.max()) for _, labels in parts)
