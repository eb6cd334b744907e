from __future__ import annotations

import torch
from torch import Tensor

from gauntlet.maths.ycc import double, halve, to_rgb, to_ycc


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def levels(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def test_every_grey_stays_as_it_is() -> None:
    greys = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    planes = to_ycc(greys)

    assert torch.equal(planes[0], greys[:, 0])
    assert (planes[1:] == 128).all()
    assert torch.equal(to_rgb(planes), greys)


def test_equals_the_standards_formula_rounded() -> None:
    """ITU-T T.871, 7: the integers differ from it by their 16 bits, so a value near a half may go the other way."""
    images = noise(20, 3, 16, 16)
    red, green, blue = images.double().unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    expected = torch.stack([luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128])

    assert (to_ycc(images) - expected).abs().max() <= 0.5 + 1e-3


def test_back_again_loses_two_levels_at_most() -> None:
    images = noise(20, 3, 16, 16)

    assert (to_rgb(to_ycc(images)).int() - images.int()).abs().max() <= 2


def test_colours_out_of_range_are_clipped() -> None:
    extreme = torch.tensor([255, 255, 255, 0, 0, 0], dtype=torch.uint8).view(2, 3).T.reshape(3, 2, 1, 1)

    assert to_rgb(extreme).flatten(1).tolist() == [[255, 121, 255], [0, 135, 0]]


def test_halves_round_down_and_up_in_turns() -> None:
    halved = halve(levels([0, 1, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1])[None], 1)

    assert halved.tolist() == [[[0, 1, 0]]]


def test_halving_repeats_the_last_row_and_column() -> None:
    assert halve(levels([10, 20, 40], [10, 20, 40], [90, 90, 80])[None], 4).tolist() == [
        [[15, 40, 40, 40], [90, 80, 80, 80]]
    ]


def test_doubled_values_are_weighted_by_nearness() -> None:
    doubled = double(levels([0, 160, 0], [0, 0, 0])[None])

    assert doubled[0, 0].tolist() == [0, 40, 120, 120, 40, 0]
    assert doubled[0, 1].tolist() == [0, 30, 90, 90, 30, 0]
    assert doubled[0, 2].tolist() == [0, 10, 30, 30, 10, 0]
    assert (doubled[0, 3] == 0).all()


def test_doubling_keeps_what_is_flat_and_repeats_narrow_planes() -> None:
    assert (double(torch.full((2, 5, 7), 201, dtype=torch.uint8)) == 201).all()
    assert double(levels([3, 9], [200, 7])[None])[0].tolist() == [[3, 3, 9, 9]] * 2 + [[200, 200, 7, 7]] * 2
