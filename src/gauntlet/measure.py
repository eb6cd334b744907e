"""What a step costs: seconds and peak memory, measured around it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

__all__ = ["Measurement", "measured"]


@dataclass
class Measurement:
    """Filled when the block ends. seconds: wall-clock. peak_memory: bytes, of the GPU or of the process (0 where the
    system does not tell: Windows without a GPU).
    """

    device: torch.device
    seconds: float = 0.0
    peak_memory: int = 0


_open: ContextVar[tuple[Measurement, ...]] = ContextVar("measurements", default=())


@contextmanager
def measured(device: torch.device | str) -> Iterator[Measurement]:
    """Measure the block, steps that it runs inside itself included.

    On CUDA the peak is what torch allocated on `device` during the block; elsewhere it is the peak resident memory of
    the process since it started, which the system does not reset.
    """
    device = torch.device(device)
    outer = _open.get()
    _note_peak(outer, device)
    measurement = Measurement(device)
    token = _open.set((*outer, measurement))
    start = time.perf_counter()
    try:
        yield measurement
    finally:
        _note_peak((*outer, measurement), device)
        measurement.seconds = time.perf_counter() - start
        _open.reset(token)


def _note_peak(measurements: tuple[Measurement, ...], device: torch.device) -> None:
    """Add the peak since the last note to every open measurement, so that a nested one takes nothing from its outer."""
    peak = _cuda_peak(device) if device.type == "cuda" else _process_peak()
    for measurement in measurements:
        if measurement.device == device:
            measurement.peak_memory = max(measurement.peak_memory, peak)


def _cuda_peak(device: torch.device) -> int:
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _process_peak() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
