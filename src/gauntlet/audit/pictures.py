"""Recovered triggers as pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from gauntlet.defense import Inspection
from gauntlet.images import to_uint8

__all__ = ["Recovered", "recovered"]

_SIDE = 160
"""Pixels that the longer side of a picture is enlarged to, by whole pixels."""


@dataclass(frozen=True)
class Recovered:
    """What a model verdict found for one class: index, its anomaly; size, the sum of the mask in pixels, NaN without a
    mask; picture, a PNG of the pattern on grey where the mask shows it, or b'' where none was recovered.
    """

    target: int
    index: float
    suspect: bool
    size: float
    picture: bytes


def recovered(found: Inspection, most: int = 5) -> Iterator[Recovered]:
    """The suspects, then the most anomalous other classes until there are `most`."""
    others = [target for target in found.anomaly.argsort(descending=True).tolist() if target not in found.suspects]
    ordered = sorted(found.suspects, key=lambda target: -float(found.anomaly[target]))
    for target in [*ordered, *others[: max(0, most - len(ordered))]]:
        mask = None if found.masks is None else found.masks[target]
        pattern = None if found.triggers is None else found.triggers[target]
        yield Recovered(
            target,
            float(found.anomaly[target]),
            target in found.suspects,
            float("nan") if mask is None else float(mask.sum()),
            b"" if mask is None or pattern is None or not mask.isfinite().all() else png(pattern, mask),
        )


def png(pattern: Tensor, mask: Tensor) -> bytes:
    """The pattern [C, H, W] over middle grey through the mask [1, H, W], both in [0, 1]."""
    shown = to_uint8(torch.full_like(pattern, 0.5).lerp(pattern, mask))
    pixels = shown.permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = max(1, _SIDE // max(image.size))
    stream = io.BytesIO()
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()
