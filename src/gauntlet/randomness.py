"""Every random draw of a case comes from here: a seed and the draw's purpose give its generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["beside", "derive", "generator", "places", "seeded"]


def derive(seed: int, *purpose: str) -> int:
    """A 63-bit seed that depends on `seed` and every word of `purpose`, the same on every machine."""
    words = "\x1f".join([str(seed), *purpose])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one purpose of one seed."""
    return torch.Generator(device=device).manual_seed(derive(seed, *purpose))


def beside(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on `device`: itself where it is there, else another that a draw of it has seeded."""
    if generator.device.type == device.type:
        return generator
    drawn = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    return torch.Generator(device=device).manual_seed(int(drawn))


@contextmanager
def seeded(seed: int, *purpose: str) -> Iterator[None]:
    """Seed torch's own global generators (weight initialisation and dropout read them), and restore them after."""
    # Asking a device that nothing has used yet would start it: time and memory that a run on the CPU doesn't need.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, *purpose))
        yield


def places(generator: torch.Generator) -> tuple[bytes, ...]:
    """How far torch's own generator and `generator`, both of its device, have been drawn from."""
    states = [torch.get_rng_state(), generator.get_state()]
    if generator.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(generator.device))
    return tuple(state.numpy().tobytes() for state in states)
