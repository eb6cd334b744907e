"""What a model that may be damaged answers."""

from __future__ import annotations

from torch import Tensor

from gauntlet.errors import DataError

__all__ = ["check_answers"]


def check_answers(answers: Tensor, images: str = "images") -> None:
    """Raise DataError where a model's logits, [N, classes], aren't all finite. images: what they are called."""
    if broken := int((~answers.isfinite()).any(1).sum()):
        what = "NaN" if answers.isnan().any() else "infinity"
        raise DataError(
            f"the model answers {what} for {broken:,} of {len(answers):,} {images}: its weights are damaged or far too "
            "large"
        )
