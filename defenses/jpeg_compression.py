"""JPEG compression: every image as a JPEG file would give it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.defense import Preprocessing
from gauntlet.images import Images
from gauntlet.maths.jpeg import jpeg_levels, jpeg_round_trip
from gauntlet.plugin import defense

__all__ = ["JpegCompression"]


@defense
@dataclass(frozen=True)
class JpegCompression(Preprocessing):
    """A libjpeg round trip: RGB for three channels, otherwise each channel as grayscale.

    Dziugaite, Ghahramani and Roy 2016, arXiv:1608.00853; the quality of the NIST Dioptra demos. Above 95 a file grows
    without looking better.
    """

    quality: Annotated[int, Field(ge=1, le=100)] = 50

    def transform(self, images: Images, generator: torch.Generator) -> Images:  # noqa: ARG002
        return jpeg_round_trip(images, self.quality)

    def transform_levels(self, levels: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        return jpeg_levels(levels, self.quality)
