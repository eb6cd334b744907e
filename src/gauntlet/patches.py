"""Mean and covariance of the patches of images that a convolution sees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["PatchForm", "PatchMoments", "moments_of"]


@dataclass(frozen=True)
class PatchForm:
    """Patches [kh, kw] of images [C, H, W] with `padding` zeros above and beside them, one at every place."""

    shape: tuple[int, int, int]
    kernel: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Of a padded image."""
        return self.shape[1] + 2 * self.padding[0]

    @property
    def columns(self) -> int:
        """Values in a row of a padded image."""
        return self.shape[0] * (self.shape[2] + 2 * self.padding[1])

    @property
    def below(self) -> int:
        """How many patches stand below each other."""
        return max(0, self.rows - self.kernel[0] + 1)

    @property
    def beside(self) -> int:
        """How many patches stand beside each other."""
        return max(0, self.columns // self.shape[0] - self.kernel[1] + 1)

    @property
    def places(self) -> int:
        """How many patches an image has."""
        return self.below * self.beside

    @property
    def flops(self) -> int:
        """Operations that the moments cost an image."""
        return 2 * self.rows * self.kernel[0] * self.columns**2


class PatchMoments:
    """The moments of all patches of one form.

    Products of two pixels depend on the rows and columns of both, and windows share them: all products of two rows that
    lie at most a patch apart are one product of matrices, which is then summed over where the patch can stand.
    """

    def __init__(self, form: PatchForm) -> None:
        self._form, channels, tall = form, form.shape[0], form.kernel[0]
        # float32 [kh, rows]: which rows a patch's row i meets, wherever the patch stands.
        steps = torch.arange(form.rows) - torch.arange(tall)[:, None]
        self._met = ((steps >= 0) & (steps < form.below)).float()
        # Of a row, the position of each of a patch's values, for each place of the patch: [places, kw * C].
        self._values = form.kernel[1] * channels
        across = (torch.arange(form.beside)[:, None] * channels) + torch.arange(self._values)
        self._across = across.flatten()
        pairs = across[:, None, :, None] * (tall * form.columns) + across[:, None, None, :]
        self._pairs = (pairs + (torch.arange(tall) * form.columns).view(1, -1, 1, 1)).flatten()
        self._square = self._order(tall)

    def _order(self, tall: int) -> Tensor:
        """int64 [T, T]: where the product of two values of a patch stands among those of a row with those below it."""
        row, value = torch.arange(tall), torch.arange(self._values)
        row, value, other_row, other = torch.meshgrid(row, value, row, value, indexing="ij")
        is_above = row <= other_row
        first, second = torch.where(is_above, value, other), torch.where(is_above, other, value)
        upper, apart = torch.minimum(row, other_row), (row - other_row).abs()
        place = ((upper * tall + apart) * self._values + first) * self._values + second
        return place.reshape(tall * self._values, -1)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [N, C, H, W] on the CPU to the mean [T] and the covariance [T, T] of the patches, whose T values are
        ordered as [kh, kw, C].
        """
        form, count = self._form, len(images)
        rows, columns, (tall, _), (above, beside) = form.rows, form.columns, form.kernel, form.padding
        # Below, as far down as the last row's partners reach.
        margins = (0, 0, beside, beside, above, above + tall - 1)
        padded = functional.pad(images.permute(0, 2, 3, 1), margins).contiguous()
        step = (rows + tall - 1) * columns
        each = padded.as_strided((rows, columns, count), (columns, 1, step))
        and_below = padded.as_strided((rows, count, tall * columns), (columns, step, 1))
        products = self._met @ torch.bmm(each, and_below).view(rows, -1)
        products = products.index_select(1, self._pairs).view(tall, form.beside, -1).sum(1)
        sums = self._met @ padded.view(count, -1, columns).sum(0)[:rows]
        sums = sums.index_select(1, self._across).view(tall, form.beside, -1).sum(1)
        mean = sums.flatten() / (count * form.places)
        square = (products.flatten() / (count * form.places))[self._square]
        return mean, square.addr_(mean, mean, alpha=-1)


@lru_cache(maxsize=16)
def moments_of(form: PatchForm) -> PatchMoments:
    """One for each form."""
    return PatchMoments(form)
