"""Every random draw of a case comes from here: a seed and the draw's purpose give its generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive", "generator", "seeded"]


def derive(seed: int, *purpose: str) -> int:
    """A 63-bit seed that depends on `seed` and every word of `purpose`, the same on every machine."""
    words = "\x1f".join([str(seed), *purpose])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one purpose of one seed."""
    return torch.Generator(device=device).manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: str) -> Iterator[None]:
    """Seed torch's own global generators (weight initialisation and dropout read them), and restore them after."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, *purpose))
        yield
