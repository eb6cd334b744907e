"""JPEG's lossy step: 8x8 blocks through libjpeg's accurate integer DCT, the quantisation, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet.images import chunks

__all__ = ["BLOCK", "BlockCoder"]

BLOCK = 8

_CACHED = 1 << 11
"""Blocks at a time on a CPU: each step's values, 8 bytes each, then stay in its caches."""
_LAUNCHED = 1 << 16
"""The same on an accelerator, where a step must be worth its launch."""

_EVEN = [
    [8192, 8192, 8192, 8192],
    [10703, 4433, -4433, -10703],
    [8192, -8192, -8192, 8192],
    [4433, -10704, 10704, -4433],
]
_ODD = [
    [11363, 9633, 6437, 2260],
    [9633, -2259, -11362, -6436],
    [6437, -11362, 2261, 9633],
    [2260, -6436, 9633, -11363],
]
"""What the even and the odd frequencies multiply the first four of 8 values with, in units of 2^-13.

The factorisation of Loeffler, Ligtenberg and Moschytz 1989 (ICASSP) with its constants rounded to 13 bits. It rounds
nowhere within a pass, so that a pass is this matrix; sums of rounded constants are why 2259, 2260 and 2261 all occur.
"""


@dataclass(frozen=True, eq=False)
class BlockCoder:
    """What a JPEG file keeps of a plane: its 8x8 blocks transformed, quantised, dequantised and transformed back.

    Equal bit for bit to the DCT that libjpeg and libjpeg-turbo call "islow", their default. float64 holds all of its
    integers exactly, whatever a device or a context does to float32 products. Each matrix ends with a column for the
    row of ones that stands below the values: it rounds, and moves levels by 128.
    """

    forward_rows: Tensor
    forward_columns: Tensor
    quantise: Tensor
    inverse_columns: Tensor
    inverse_rows: Tensor

    @classmethod
    def of(cls, table: Tensor) -> BlockCoder:
        """table: int [8, 8], the divisors (1 to 255) by vertical and horizontal frequency, on the planes' device."""
        divisors = table.to(torch.float64)
        even, odd = divisors.new_tensor(_EVEN), divisors.new_tensor(_ODD)
        halves = [torch.cat([even, even.flip(1)], 1), torch.cat([odd, -odd.flip(1)], 1)]
        matrix = torch.stack(halves, 1).view(BLOCK, BLOCK)
        rounding = divisors.new_full((BLOCK, 1), 0.5)
        shift = -128 * matrix.sum(1, keepdim=True) / 2**11
        # Coefficients are integers, 8 times too large, and ties go away from zero. The excess of 2^-20 settles a tie,
        # and is too small to make one of anything else: coefficients stay below 2^15.
        steps = (1 + 2**-20) / (8 * divisors.T[:, :, None])
        dequantised = matrix.T * divisors.T[:, None, :] / 2**11
        return cls(
            torch.cat([matrix / 2**11, rounding + shift], 1),
            torch.cat([matrix / 2**15, rounding], 1).expand(BLOCK, -1, -1),
            steps,
            torch.cat([dequantised, rounding.expand(BLOCK, -1, -1)], 2),
            torch.cat([matrix.T / 2**18, rounding + 128], 1),
        )

    def code(self, planes: Tensor) -> Tensor:
        """uint8 [P, H, W] of any size to the same; an axis is filled up to whole blocks with its last value."""
        _, height, width = planes.shape
        rows, columns = (_whole(size) for size in (height, width))
        filled = planes.new_empty(len(planes), rows, columns)
        filled[:, :height, :width] = planes
        filled[:, :height, width:] = planes[:, :, -1:]
        filled[:, height:] = filled[:, height - 1 : height]
        # Eight values of a row move as one word.
        strips = filled.view(torch.int64).view(-1, BLOCK, columns // BLOCK)
        budget = _CACHED if planes.device.type == "cpu" else _LAUNCHED
        for part in chunks(len(strips), max(1, budget * BLOCK // columns)):
            strips[part] = self._code(strips[part])
        return filled[:, :height, :width]

    def _code(self, strips: Tensor) -> Tensor:
        """int64 [strips, 8, blocks a strip]. Inside, values lie [across, down, block]: a pass is one matrix product."""
        words = strips.transpose(0, 1).contiguous()
        levels = words.view(torch.uint8).view(BLOCK, -1, BLOCK).permute(2, 0, 1)
        blocks = levels.shape[2]
        rows = self.quantise.new_empty(BLOCK + 1, BLOCK, blocks)
        columns = self.quantise.new_empty(BLOCK, BLOCK + 1, blocks)
        values = self.quantise.new_empty(BLOCK, BLOCK, blocks)
        rows[BLOCK] = columns[:, BLOCK] = 1
        rows[:BLOCK] = levels
        torch.mm(self.forward_rows, rows.flatten(1), out=values.flatten(1))
        torch.floor(values, out=columns[:, :BLOCK])
        torch.bmm(self.forward_columns, columns, out=values)
        torch.round(values.floor_().mul_(self.quantise), out=columns[:, :BLOCK])
        torch.bmm(self.inverse_columns, columns, out=values)
        torch.floor(values, out=rows[:BLOCK])
        torch.mm(self.inverse_rows, rows.flatten(1), out=values.flatten(1))
        levels = values.clamp_(0, 255).permute(1, 2, 0).to(torch.uint8, memory_format=torch.contiguous_format)
        return levels.view(torch.int64).view(words.shape).transpose(0, 1)


def _whole(size: int) -> int:
    """The size of an axis in whole blocks."""
    return -(-size // BLOCK) * BLOCK
