"""Mean and covariance of the patches of images that a convolution sees."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["PatchMoments", "moments_of"]


class PatchMoments:
    """Moments of all patches [kh, kw] of images [C, H, W], padded with zeros by `padding` on each side, stride 1.

    Products of two pixels depend on the rows and columns of both, and windows share them: all products of two rows that
    lie at most a patch apart are one product of matrices, which is then summed over where the patch can stand.
    """

    def __init__(self, shape: tuple[int, int, int], kernel: tuple[int, int], padding: tuple[int, int]) -> None:
        channels, height, width = shape
        (tall, wide), (above, beside) = kernel, padding
        self._tall, self._rows, self._columns = tall, height + 2 * above, (width + 2 * beside) * channels
        self.places = (self._rows - tall + 1, width + 2 * beside - wide + 1)
        """How many patches stand below and beside each other."""
        # Below, as far down as the last row's partners reach.
        self._margins = (beside, beside, above, above + tall - 1)
        # float32 [kh, rows]: which rows a patch's row i meets, wherever the patch stands.
        steps = torch.arange(self._rows) - torch.arange(tall)[:, None]
        self._met = ((steps >= 0) & (steps < self.places[0])).float()
        # Of a row, the position of each of a patch's values, for each place of the patch: [places, kw * C].
        self._values = wide * channels
        across = (torch.arange(self.places[1])[:, None] * channels) + torch.arange(self._values)
        self._across = across.flatten()
        pairs = across[:, None, :, None] * (tall * self._columns) + across[:, None, None, :]
        self._pairs = (pairs + (torch.arange(tall) * self._columns).view(1, -1, 1, 1)).flatten()
        self._square = self._order()

    def _order(self) -> Tensor:
        """int64 [T, T]: where the product of two values of a patch stands among those of a row with those below it."""
        row, value = torch.arange(self._tall), torch.arange(self._values)
        row, value, other_row, other = torch.meshgrid(row, value, row, value, indexing="ij")
        is_above = row <= other_row
        first, second = torch.where(is_above, value, other), torch.where(is_above, other, value)
        upper, apart = torch.minimum(row, other_row), (row - other_row).abs()
        place = ((upper * self._tall + apart) * self._values + first) * self._values + second
        size = self._tall * self._values
        return place.reshape(size, size)

    def flops(self) -> int:
        """Of the products of one image's rows."""
        return 2 * self._rows * self._tall * self._columns**2

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [N, C, H, W] on the CPU to the mean [T] and the covariance [T, T] of the patches, whose T values are
        ordered as [kh, kw, C].
        """
        count = len(images) * self.places[0] * self.places[1]
        rows, columns, step = self._rows, self._columns, (self._rows + self._tall - 1) * self._columns
        padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, *self._margins)).contiguous()
        each = padded.as_strided((rows, columns, len(images)), (columns, 1, step))
        and_below = padded.as_strided((rows, len(images), self._tall * columns), (columns, step, 1))
        products = self._met @ torch.bmm(each, and_below).view(rows, -1)
        products = products.index_select(1, self._pairs).view(self._tall, self.places[1], -1).sum(1)
        sums = self._met @ padded.view(len(images), -1, columns).sum(0)[:rows]
        mean = sums.index_select(1, self._across).view(self._tall, self.places[1], -1).sum(1).flatten() / count
        return mean, (products.flatten() / count)[self._square].addr_(mean, mean, alpha=-1)


@lru_cache(maxsize=16)
def moments_of(shape: tuple[int, int, int], kernel: tuple[int, int], padding: tuple[int, int]) -> PatchMoments:
    """One for each form."""
    return PatchMoments(shape, kernel, padding)
