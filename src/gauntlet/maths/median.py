"""The median filter, as minima and maxima of shifted images instead of sorting every window."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gauntlet.images import Images, chunks

__all__ = ["median_filter", "median_levels"]

_CACHED = 1 << 19
"""Padded values at a time on a CPU: what its caches hold beside the passes' results."""
_LAUNCHED = 1 << 22
"""The same on an accelerator, where a pass must be worth its launch."""


def median_filter(images: Images, window: int) -> Images:
    """Each value becomes the median of the window x window values around it, channel by channel.

    images: float [N, C, H, W], any device; the result is float [N, C, H, W]. Equal bit for bit to
    `scipy.ndimage.median_filter(size=(1, 1, window, window), mode="reflect")`: beyond a border the image is mirrored
    with its edge repeated, an even window reaches one pixel further up and left, and of its two middle values the
    larger is taken. ValueError for a window below 1.
    """
    filtered = torch.empty(images.shape, device=images.device)
    for part in _parts(images, window):
        result = filtered[part]
        values = _filter(_as_levels(images[part], result), window)
        result.copy_(values)
        if values.dtype == torch.uint8:
            result.div_(255)
    return filtered


def median_levels(levels: Tensor, window: int) -> Tensor:
    """The same of 8-bit images, uint8 [N, C, H, W] to uint8, in a third of the time: a median only compares."""
    filtered = torch.empty_like(levels, memory_format=torch.contiguous_format)
    for part in _parts(levels, window):
        filtered[part] = _filter(levels[part], window)
    return filtered


def _parts(images: Tensor, window: int) -> Iterator[slice]:
    """As many images at a time as the caches hold."""
    if window < 1:
        raise ValueError(f"a median window of {window} is empty; legal: from 1")
    _, channels, height, width = images.shape
    padded = channels * (height + window - 1) * (width + window - 1)
    budget = _CACHED if images.device.type == "cpu" else _LAUNCHED
    return chunks(len(images), max(1, budget // padded))


def _as_levels(images: Tensor, scratch: Tensor) -> Tensor:
    """The same images as uint8 where they are of 8 bits: a median only compares, and bytes compare 4 times faster.

    scratch: float32 of the images' shape, overwritten: fresh memory would cost more than the arithmetic.
    """
    if images.dtype != torch.float32:
        return images
    levels = torch.mul(images, 255, out=scratch).round_().to(torch.uint8)
    # torch.equal would run in one thread.
    return levels if scratch.copy_(levels).div_(255).sub_(images).abs_().amax() == 0 else images


def _filter(images: Tensor, window: int) -> Tensor:
    if not images.numel() or window == 1:
        return images
    height, width = images.shape[2:]
    padded = _padded(images, window)
    # One flat buffer: a shift by a row or a column is an offset, so each pass is one contiguous vector operation. What
    # wraps around an edge lands in the padding, which is cut off.
    flat, row = padded.view(-1), padded.shape[3]
    medians = _median_3x3(flat, row) if window == 3 else _median(flat, row, window)
    whole = flat.new_empty(flat.shape)
    whole[: len(medians)] = medians
    return whole.view(padded.shape)[:, :, :height, :width]


def _padded(images: Tensor, window: int) -> Tensor:
    """[N, C, H + window - 1, W + window - 1]: what the windows around every pixel see."""
    count, channels, height, width = images.shape
    before, more = window // 2, window - 1
    rows, columns = (_mirrored(size, window, images.device) for size in (height, width))
    padded = images.new_empty(count, channels, height + more, width + more)
    inside = padded[:, :, before : before + height]
    inside[..., before : before + width] = images
    for edge in (slice(0, before), slice(before + width, None)):
        inside[..., edge] = images[..., columns[edge]]
    for edge in (slice(0, before), slice(before + height, None)):
        padded[:, :, edge] = inside[:, :, rows[edge]]
    return padded


def _mirrored(size: int, window: int, device: torch.device) -> Tensor:
    """The source index of each padded position: the axis mirrored at its ends with the edge repeated."""
    before = window // 2
    positions = torch.arange(-before, size + window - 1 - before, device=device) % (2 * size)
    return torch.where(positions < size, positions, 2 * size - 1 - positions)


def _median_3x3(flat: Tensor, width: int) -> Tensor:
    """The median of 9 in 18 passes: neighbouring windows share their sorted columns (Smith 1996)."""
    top, middle, bottom = flat[: -2 * width], flat[width:-width], flat[2 * width :]
    low, high = torch.minimum(top, middle), torch.maximum(top, middle)
    centre, high = torch.minimum(high, bottom), torch.maximum(high, bottom)
    low, centre = torch.minimum(low, centre), torch.maximum(low, centre)
    lowest = torch.maximum(torch.maximum(low[:-2], low[1:-1]), low[2:])
    highest = torch.minimum(torch.minimum(high[:-2], high[1:-1]), high[2:])
    return _median_of_3(lowest, _median_of_3(centre[:-2], centre[1:-1], centre[2:]), highest)


def _median_of_3(one: Tensor, two: Tensor, three: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(one, two), torch.minimum(torch.maximum(one, two), three))


def _median(flat: Tensor, width: int, window: int) -> Tensor:
    """Windows share their columns, each sorted once, and pairs of neighbouring columns, each merged once."""
    size, rank = len(flat) - (window - 1) * (width + 1), window * window // 2
    rows = len(flat) - (window - 1) * width
    column = _sorted([flat[row * width : row * width + rows] for row in range(window)])
    pair = _merged([values[:-1] for values in column], [values[1:] for values in column], range(2 * window))
    parts = [[values[shift : shift + size] for values in pair] for shift in range(0, window - 1, 2)]
    if window % 2:
        parts.append([values[window - 1 :] for values in column])
    while len(parts) > 1:
        parts, rank = _contenders(parts, rank)
        one, two, *others = parts
        more = sum(map(len, others))
        wanted = range(max(0, rank - more), min(rank + 1, len(one) + len(two)))
        parts, rank = [_merged(one, two, wanted), *others], rank - wanted.start
    return parts[0][rank]


def _contenders(parts: list[list[Tensor]], rank: int) -> tuple[list[list[Tensor]], int]:
    """The sorted parts without what can't be of `rank` (from 0) among all of them, and its rank among the rest."""
    total, kept = sum(map(len, parts)), []
    for part in parts:
        below = max(0, rank - (total - len(part)))
        kept.append(part[below : rank + 1])
        total, rank = total - len(part) + len(kept[-1]), rank - below
    return kept, rank


def _sorted(values: list[Tensor]) -> list[Tensor]:
    if len(values) == 1:
        return values
    half = len(values) // 2
    return _merged(_sorted(values[:half]), _sorted(values[half:]), range(len(values)))


def _merged(one: list[Tensor], two: list[Tensor], wanted: range) -> list[Tensor]:
    """Of two sorted lists of equally long tensors those of the `wanted` ranks, value by value."""
    network, order = _merging_network(len(one), len(two), wanted)
    values = dict(enumerate([*one, *two]))
    for exchange in network:
        low, high = values.pop(exchange.first), values.pop(exchange.second)
        if exchange.keeps_low:
            values[exchange.first] = torch.minimum(low, high)
        if exchange.keeps_high:
            values[exchange.second] = torch.maximum(low, high)
    return [values[order[rank]] for rank in wanted]


@dataclass(frozen=True)
class _Exchange:
    """Puts the smaller of two places first; a side that nothing reads later isn't computed."""

    first: int
    second: int
    keeps_low: bool
    keeps_high: bool


@cache
def _merging_network(one: int, two: int, wanted: range) -> tuple[tuple[_Exchange, ...], tuple[int, ...]]:
    """What merges a sorted list of `one` and another of `two` places as far as the `wanted` ranks, and each rank's
    place.
    """
    order, pairs = _merge(list(range(one)), list(range(one, one + two)))
    needed = {order[rank] for rank in wanted}
    kept = []
    for first, second in reversed(pairs):
        if first in needed or second in needed:
            kept.append(_Exchange(first, second, first in needed, second in needed))
            needed |= {first, second}
    return tuple(reversed(kept)), tuple(order)


def _merge(one: list[int], two: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Batcher's odd-even merge (Knuth, TAOCP 3, section 5.3.4) of the places `one` and `two`, either already sorted:
    the places from the least to the largest, and the exchanges in order.
    """
    if not one or not two:
        return one + two, []
    if len(one) == len(two) == 1:
        return one + two, [(one[0], two[0])]
    (even, some), (odd, others) = _merge(one[::2], two[::2]), _merge(one[1::2], two[1::2])
    last = list(zip(odd, even[1:], strict=False))
    order = [even[0], *itertools.chain.from_iterable(last), *odd[len(last) :], *even[1 + len(last) :]]
    return order, [*some, *others, *last]
