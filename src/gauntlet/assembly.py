"""Networks put together from weights that are there already, without building or initialising one first."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from gauntlet.architecture import Architecture
from gauntlet.errors import GauntletError
from gauntlet.facts import TaskFacts
from gauntlet.network import Network
from gauntlet.plugin import name_of

__all__ = ["assemble", "mould", "wrap"]

_PLAIN = frozenset({str, int, float, bool, type(None), type})
_COPYING = ("__deepcopy__", "__getstate__", "__getnewargs__", "__new__", "__reduce__", "__reduce_ex__", "__slots__")
_DICTS = frozenset({dict, OrderedDict})


def wrap(architecture: Architecture, facts: TaskFacts, mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
    """The architecture's module behind the task's normalisation."""
    body = architecture.build(facts.shape, facts.classes)
    return Network(body, mean, std, *architecture.taps(body))


@lru_cache(maxsize=16)
def mould(architecture: Architecture, facts: TaskFacts, mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
    """A network without weights (meta device), in eval mode, for `assemble`; it must stay as it is.

    GauntletError for a model that keeps a buffer outside its state.
    """
    with torch.device("meta"):
        form = wrap(architecture, facts, mean, std).eval()
    for name in {name for name, _ in form.named_buffers()} - form.state_dict().keys():
        raise GauntletError(
            f"model {name_of(architecture)}: the buffer {name} is no part of its state, so that a copy would lack it; "
            "register it as persistent"
        )
    return form


def assemble(form: Network, state: Mapping[str, Tensor]) -> Network:
    """A copy of `form` that holds the very tensors of `state`; RuntimeError when they don't fit."""
    empty = form.state_dict(keep_vars=True)
    if {name: item.shape for name, item in empty.items()} != {name: item.shape for name, item in state.items()}:
        raise RuntimeError(f"the weights are not those of a {type(form.body).__name__} of this form")
    memo: dict[int, Any] = {
        id(item): nn.Parameter(state[name], item.requires_grad) if isinstance(item, nn.Parameter) else state[name]
        for name, item in empty.items()
    }
    # deepcopy takes what `memo` holds for an object; alone it takes five times as long, most of it for empty hooks.
    plain = [module for module in form.modules() if _is_plain(module)]
    memo |= {id(module): type(module).__new__(type(module)) for module in plain}
    for module in plain:
        memo[id(module)].__setstate__({name: _copied(value, memo) for name, value in vars(module).items()})
    return copy.deepcopy(form, memo)


def _is_plain(module: nn.Module) -> bool:
    """Whether its copy is a copy of its attributes, as for torch's own modules."""
    cls = type(module)
    own = [base for base in cls.__mro__ if base not in (nn.Module, object)]
    return not any(name in vars(base) for base in own for name in _COPYING)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _PLAIN or (kind is tuple and all(type(item) in _PLAIN for item in value)):
        return value
    if kind is set and not value:
        return set()
    if kind in _DICTS:
        return kind((name, memo[id(item)] if id(item) in memo else _copied(item, memo)) for name, item in value.items())
    return copy.deepcopy(value, memo)
