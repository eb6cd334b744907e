"""Where the work runs."""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager

import torch

from gauntlet.errors import SettingError

__all__ = ["choose_device", "describe_device", "deterministic", "keep_freed_memory"]

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""glibc's names for them in malloc.h."""


def choose_device(wish: str) -> torch.device:
    """`auto` (CUDA when there, else the CPU), `cpu`, `cuda` or `cuda:N`; SettingError when it is not there."""
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
    except RuntimeError:
        raise SettingError(f"unknown device {wish!r}; legal: auto, cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device {wish!r} is not supported; legal: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(
            f"device {wish!r} was asked for, but this machine has no usable CUDA device; try --device cpu"
        )
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise SettingError(
            f"device {wish!r} doesn't exist; this machine has {torch.cuda.device_count()} CUDA device(s)"
        )
    return device


def describe_device(device: torch.device) -> str:
    """`cpu, 2 threads` or `cuda: NVIDIA H200`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}"


def deterministic() -> AbstractContextManager[None]:
    """Same seed, same bytes on CUDA too: cuDNN neither tries algorithms out nor takes those that add in any order."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=True
    )
    return flags


def keep_freed_memory() -> None:
    """Have the C library keep large freed blocks for the next allocation instead of returning them to the system.

    Every training step on a CPU allocates the same large activations anew; page faults took a third of its time
    (docs/benchmarks.md). Does nothing where the C library isn't glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
