from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import fft

from gauntlet.maths.dct import BlockCoder

ONES = torch.ones(8, 8, dtype=torch.int64)


def test_the_passes_are_cosine_transforms() -> None:
    """Within the 13 bits of their constants, and the inverse is the forward pass transposed."""
    coder = BlockCoder.of(ONES)
    cosines = fft.dct(np.eye(8), axis=0, norm="ortho") * np.sqrt(8)

    assert np.abs(coder.forward_rows[:, :8].numpy() / 4 - cosines).max() < 2**-12
    assert torch.equal(coder.forward_columns[3, :, :8] * 16, coder.forward_rows[:, :8])
    assert torch.equal(coder.inverse_columns[3, :, :8], coder.forward_rows[:, :8].T)
    assert torch.equal(coder.inverse_rows[:, :8] * 128, coder.forward_rows[:, :8].T)


def test_divisors_of_one_lose_less_than_a_level() -> None:
    planes = torch.randint(0, 256, (50, 24, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    lost = (BlockCoder.of(ONES).code(planes).int() - planes.int()).abs()

    assert lost.max() <= 1
    assert lost.float().mean() < 0.2


@pytest.mark.parametrize(("level", "coded"), [(129, 130), (127, 126), (130, 130), (131, 132), (125, 124), (128, 128)])
def test_a_tie_of_the_quantisation_goes_away_from_zero(level: int, coded: int) -> None:
    """A flat block of level 128 + k has the coefficient 8 k, which is k / 2 steps of 16."""
    planes = torch.full((2, 8, 8), level, dtype=torch.uint8)

    assert torch.equal(BlockCoder.of(ONES * 16).code(planes), torch.full_like(planes, coded))


def test_each_frequency_has_its_own_divisor() -> None:
    """Rows of a table are vertical frequencies: where only those are coarse, a horizontal wave survives."""
    wave = (128 + 60 * torch.cos(torch.pi * (torch.arange(8) + 0.5) / 8)).to(torch.uint8)
    across, down = wave.expand(1, 8, 8), wave[:, None].expand(1, 8, 8)
    table = ONES.clone()
    table[1:] = 255
    coder = BlockCoder.of(table)

    assert (coder.code(across).int() - across.int()).abs().max() <= 1
    assert (coder.code(down).int() - down.int()).abs().max() > 10


def test_blocks_and_planes_do_not_touch() -> None:
    planes = torch.randint(0, 256, (9, 16, 24), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    coder = BlockCoder.of(torch.arange(1, 65).view(8, 8))
    coded = coder.code(planes)

    for row in (0, 8):
        for column in (0, 8, 16):
            block = slice(row, row + 8), slice(column, column + 8)
            assert torch.equal(coder.code(planes[:, *block]), coded[:, *block])
    assert torch.equal(coder.code(planes[4:5]), coded[4:5])
