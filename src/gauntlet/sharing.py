"""What one of several workers may take of the machine: its share of the cores, and a GPU or a share of one."""

from __future__ import annotations

import torch

from gauntlet.measure import cores

__all__ = ["share", "threads_each"]


_SHARED = 0.9
"""Of a GPU's memory, what its workers may allocate together: each also has CUDA's libraries there."""


def threads_each(workers: int) -> int:
    """The threads of each of `workers`: more than cores make every worker slower (docs/benchmarks.md). Fewer that this
    process has, as by OMP_NUM_THREADS, stay.
    """
    return min(torch.get_num_threads(), max(1, cores() // workers))


def share(wish: str, worker: int, workers: int) -> str:
    """Take the share of `worker` (from 0) of `workers`, and give the device that it is to use.

    wish: what the user asked for. Where that leaves the choice among GPUs, worker i takes the i-th of those that
    CUDA_VISIBLE_DEVICES shows, from the start again when there are more workers; workers on one GPU get equal parts of
    its memory.
    """
    torch.set_num_threads(threads_each(workers))
    if wish not in ("auto", "cuda") or not torch.cuda.is_available():
        return wish
    count = torch.cuda.device_count()
    device = worker % count
    together = len(range(device, workers, count))
    if together > 1:
        torch.cuda.set_per_process_memory_fraction(_SHARED / together, device)
    return f"cuda:{device}"
