"""How far a training has come: everything that its next epoch depends on, as tensors and plain values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from gauntlet.network import Network
from gauntlet.optimizers import Optimizers
from gauntlet.out_of_memory import Accumulation

__all__ = ["Course", "EpochLog", "Facts", "Saved"]

_NETWORK, _MODULE, _OPTIMIZER, _BEST, _GENERATOR = "network.", "module.", "optimizer.", "best.", "generator."


@dataclass(frozen=True)
class EpochLog:
    """One epoch: mean training loss, images a second, validation loss (NaN without a validation split)."""

    epoch: float
    loss: float
    rate: float
    validation_loss: float


class Facts(BaseModel):
    """The plain half of a saved course. done: steps. parts: of a batch that memory asked for. seconds: spent so far.

    values: what the optimizers keep that is no tensor, by name. strides: of each tensor, since kernels go by them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    done: Annotated[int, Field(ge=1)]
    log: list[tuple[float, float, float, float]]
    best: float
    stale: Annotated[int, Field(ge=0)]
    parts: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0)]
    values: dict[str, float | None]
    strides: dict[str, list[int]]


@dataclass(frozen=True, eq=False)
class Saved:
    """A course as it is kept."""

    tensors: Mapping[str, Tensor]
    facts: Facts


@dataclass(eq=False)
class Course:
    """A training under way. modules: those of its objective. total, per_epoch: steps. done: steps so far.

    best, best_state, stale: of early stopping. seconds: what went into it before this process took it over.
    """

    network: Network
    modules: list[nn.Module]
    optimizers: Optimizers
    accumulation: Accumulation
    generator: torch.Generator
    device: torch.device
    total: int
    per_epoch: int
    done: int = 0
    log: list[EpochLog] = field(default_factory=list)
    best: float = math.inf
    best_state: dict[str, Tensor] | None = None
    stale: int = 0
    seconds: float = 0.0

    def saved(self, seconds: float) -> Saved:
        """Everything that the next epoch depends on; its tensors are the living ones. seconds: spent on it so far."""
        tensors, values = dict(self._fixed()), {}
        tensors |= {f"{_BEST}{name}": value for name, value in (self.best_state or {}).items()}
        for name, value in self.optimizers.state():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{name}"] = value
            else:
                values[name] = None if value is None else float(value)
        facts = Facts(
            done=self.done,
            log=[astuple(entry) for entry in self.log],
            best=self.best,
            stale=self.stale,
            parts=self.accumulation.parts,
            seconds=seconds,
            values=values,
            strides={
                name: list(value.stride()) for name, value in tensors.items() if _is_dense(value.shape, value.stride())
            },
        )
        return Saved(tensors, facts)

    def check(self, saved: Saved) -> None:
        """Raise ValueError when `saved` is no course of this training."""
        facts = saved.facts
        if facts.done > self.total or (facts.done % self.per_epoch and facts.done != self.total):
            raise ValueError(f"{facts.done} steps are no whole epochs of {self.per_epoch} steps, {self.total} in all")
        if len(facts.log) != math.ceil(facts.done / self.per_epoch):
            raise ValueError(f"{len(facts.log)} epochs are logged after {facts.done} steps")
        expected = {name: _form(value) for name, value in self._fixed()}
        network = {name: form for name, form in expected.items() if name.startswith(_NETWORK)}
        best = {f"{_BEST}{name.removeprefix(_NETWORK)}": form for name, form in network.items()}
        found = {name: _form(value) for name, value in saved.tensors.items()}
        states = {name: found.pop(name) for name in list(found) if name.startswith(_OPTIMIZER)}
        if found not in (expected, expected | best):
            raise ValueError("its tensors are not those of this training")
        for name, strides in facts.strides.items():
            if name not in saved.tensors or not _is_dense(tuple(saved.tensors[name].shape), tuple(strides)):
                raise ValueError(f"the strides of {name} are those of no such tensor")
        forms = [_form(parameter) for parameter in self.optimizers.parameters]
        for name, (shape, _) in states.items():
            position = name.removeprefix(_OPTIMIZER).partition(".")[0]
            if not position.isdecimal() or int(position) >= len(forms) or shape not in (forms[int(position)][0], ()):
                raise ValueError(f"{name} belongs to no parameter of this training")

    def adopt(self, saved: Saved) -> None:
        """Go on from `saved`, which `check` has passed."""
        facts = saved.facts
        tensors = {name: _laid_out(value, facts.strides.get(name)) for name, value in saved.tensors.items()}
        self.network.load_state_dict(_below(_NETWORK, tensors))
        for number, module in enumerate(self.modules):
            module.load_state_dict(_below(f"{_MODULE}{number}.", tensors))
        self.optimizers.adopt({**facts.values, **_below(_OPTIMIZER, tensors)})
        best = _below(_BEST, tensors)
        self.best_state = {name: value.to(self.device) for name, value in best.items()} or None
        self.generator.set_state(tensors[f"{_GENERATOR}batches"])
        torch.set_rng_state(tensors[f"{_GENERATOR}cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"{_GENERATOR}cuda"], self.device)
        self.log = [EpochLog(*entry) for entry in facts.log]
        self.done, self.best, self.stale = facts.done, facts.best, facts.stale
        self.accumulation.parts, self.seconds = facts.parts, facts.seconds

    def _fixed(self) -> Iterator[tuple[str, Tensor]]:
        """What a course holds at any time: weights, and the states of the generators that the epochs draw from."""
        for name, value in self.network.state_dict().items():
            yield f"{_NETWORK}{name}", value
        for number, module in enumerate(self.modules):
            for name, value in module.state_dict().items():
                yield f"{_MODULE}{number}.{name}", value
        yield f"{_GENERATOR}batches", self.generator.get_state()
        yield f"{_GENERATOR}cpu", torch.get_rng_state()
        if self.device.type == "cuda":
            yield f"{_GENERATOR}cuda", torch.cuda.get_rng_state(self.device)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _form(value: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tuple(value.shape), value.dtype


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie side by side, in any order of the dimensions."""
    if len(shape) != len(strides) or not math.prod(shape):
        return False
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return min(strides, default=1) > 0


def _laid_out(value: Tensor, strides: list[int] | None) -> Tensor:
    """A copy with memory of its own, in the given strides."""
    if strides is None:
        return value.clone()
    return torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)
