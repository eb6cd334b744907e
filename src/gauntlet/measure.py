"""What a step costs: seconds and peak memory, measured around it, and the machine that it was measured on."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

__all__ = ["Measurement", "cores", "machine", "measured", "noted", "obtained_inside"]


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
    with suppress(OSError):
        # What the system's accounting tells begins with the peak of the process that started this one.
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_making: ContextVar[dict[str, float] | None] = ContextVar("making", default=None)
"""What the value that is being made has obtained so far, with the seconds of each."""


@contextmanager
def obtained_inside() -> Iterator[dict[str, float]]:
    """What `noted` notes within the block: names to seconds."""
    inner: dict[str, float] = {}
    token = _making.set(inner)
    try:
        yield inner
    finally:
        _making.reset(token)


@contextmanager
def noted(name: str) -> Iterator[None]:
    """Note the seconds of the block, under `name`, in what is being made around it."""
    outer, start = _making.get(), time.perf_counter()
    try:
        yield
    finally:
        if outer is not None:
            outer[name] = outer.get(name, 0.0) + time.perf_counter() - start


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: torch.device | str) -> str:
    """`AMD EPYC 9554, cpu`, `AMD EPYC 9554, NVIDIA H200`: on which machine a second is a second."""
    device = torch.device(device)
    return f"{_processor()}, {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
