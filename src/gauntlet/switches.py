"""What holds for the whole process, whoever sets it: gradients, kinds of floats, threads, precision, warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

__all__ = ["switches_kept"]

_Switch: TypeAlias = tuple[Callable[[], Any], Callable[[Any], object]]
"""How to ask for something that holds for the whole process, and how to set it."""


def _flag(owner: object, name: str) -> _Switch:
    return partial(getattr, owner, name), partial(setattr, owner, name)


_BACKENDS = (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn)
_OPERATIONS = [getattr(backend, name, None) for backend in _BACKENDS for name in ("matmul", "conv", "rnn")]
_PRECISIONS = [owner for owner in (torch.backends, *_BACKENDS, *_OPERATIONS) if hasattr(owner, "fp32_precision")]
"""What was set by them no longer answers to the two earlier names, which therefore come after."""

_SWITCHES: tuple[_Switch, ...] = (
    *(_flag(owner, "fp32_precision") for owner in _PRECISIONS),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda _device: torch.set_default_device(None)),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    _flag(torch.backends.mkldnn, "enabled"),
    *(_flag(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
)


@contextmanager
def switches_kept() -> Iterator[None]:
    """What the block switches for the whole process is switched back, so that no plug-in changes another's results."""
    with np.errstate(), warnings.catch_warnings():
        before = [ask() for ask, _ in _SWITCHES]
        try:
            yield
        finally:
            for (ask, switch), value in zip(_SWITCHES, before, strict=True):
                if _asked(ask) != value:
                    switch(value)


def _asked(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except RuntimeError:  # torch: a precision was set by two names that contradict each other
        return None
