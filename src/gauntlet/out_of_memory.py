"""Work in smaller parts where the device's memory doesn't hold a batch at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Accumulation", "outputs", "parts"]

T = TypeVar("T")


class Accumulation:
    """The backward pass of a batch, in as many equal parts as the device's memory asks for.

    Starts with one part; when memory runs out the parts are doubled, for this batch and all later ones, and `say`
    hears of it. The gradient stays that of the batch's mean loss. What looks across samples doesn't stay: batch
    normalisation takes the statistics of a part, an objective that mixes samples mixes those of a part, and random
    draws of the failed pass are spent, so a training that was split isn't the one of a larger device bit for bit.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.parts = 1

    def backward(self, loss_of: Callable[[slice], Tensor], count: int, clear: Callable[[], None]) -> Tensor:
        """The mean loss of a batch of `count`, detached, its gradients left on the parameters.

        loss_of: the mean loss of a slice of the batch. clear: drops gradients. Raises torch.OutOfMemoryError when parts
        of two samples don't fit: batch normalisation needs two.
        """
        while True:
            clear()
            try:
                return self._passes(loss_of, count)
            except torch.OutOfMemoryError:
                if self.parts >= count // 2:
                    raise
            # Not in the handler: there the failed pass's tensors are still held by the traceback.
            clear()
            torch.cuda.empty_cache()
            self.parts = min(2 * self.parts, count // 2)
            self._say(f"out of memory: batches of {count} now in {self.parts} parts")

    def _passes(self, loss_of: Callable[[slice], Tensor], count: int) -> Tensor:
        if self.parts == 1:
            loss = loss_of(slice(0, count))
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        parts = max(1, min(self.parts, count // 2))
        bounds = [count * number // parts for number in range(parts + 1)]
        losses = []
        for start, stop in itertools.pairwise(bounds):
            loss = loss_of(slice(start, stop)) * ((stop - start) / count)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).sum()


def outputs(count: int, size: int, forward: Callable[[slice], Tensor]) -> Tensor:
    """What `forward` yields for slices of range(count), one below the other; slices as `parts` takes them."""
    return torch.cat(parts(count, size, forward))


def parts(count: int, size: int, work: Callable[[slice], T]) -> list[T]:
    """What `work` yields for slices of range(count), each of at most `size`, in their order.

    A slice for which memory runs out is halved, and so are those after it; raises torch.OutOfMemoryError when one
    sample doesn't fit.
    """
    found: list[T] = []
    done = 0
    while done < count:
        stop = min(done + size, count)
        try:
            found.append(work(slice(done, stop)))
            done = stop
            continue
        except torch.OutOfMemoryError:
            if stop - done == 1:
                raise
        # Not in the handler: there the failed pass's tensors are still held by the traceback.
        torch.cuda.empty_cache()
        size //= 2
    return found
