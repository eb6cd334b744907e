"""A stand-in for a CUDA device on a machine without one: the CPU's arithmetic under the rules of two devices.

Tensors count as the device's by their storage, and say so where Python asks. Each operation that meets tensors of both
is checked as CUDA would: what may not meet raises MismatchError. It finds what stops on a GPU, not what differs there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._functorch.apis
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["MismatchError", "StandIn", "stand_in_gpu"]

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

_OPS = torch.ops.aten
_ACROSS = (_OPS.copy_.default, _OPS._to_copy.default)
_WAITS = (
    _OPS._local_scalar_dense.default,
    _OPS._unique2.default,
    _OPS.bincount.default,
    _OPS.masked_select.default,
    _OPS.nonzero.default,
)
"""What gives the CPU something to read or a size that only the device knows."""
_READS_AT, _WRITES_AT = (_OPS.index.Tensor,), (_OPS.index_put_.default, _OPS._index_put_impl_.default)

_MAKERS = (
    *("arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn"),
    *("randperm", "scalar_tensor", "tensor", "zeros"),
)
_LIKE_ANOTHER = ("empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like")
_LIKE_ITSELF = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
_DRAWS = (
    *((torch.Tensor, name) for name in ("bernoulli_", "exponential_", "normal_", "random_", "uniform_", "multinomial")),
    *((torch, name) for name in ("bernoulli", "multinomial", "normal")),
)
_WITH_HELPERS = (
    (torch, "quantile"),
    (torch.Tensor, "quantile"),
    (torch.nn.functional, "one_hot"),
    (torch._functorch.apis, "vmap_impl"),
)
"""What makes tensors inside itself on the device of the memory, which is the CPU here."""


class MismatchError(RuntimeError):
    """What CUDA refuses: tensors, or a generator and a tensor, of two devices."""


def _is_gpu(device: Any) -> bool:
    return isinstance(device, int) or torch.device(device).type == "cuda"


class _Generator(torch.Generator):
    def __new__(cls, device: Any = CPU) -> _Generator:
        return super().__new__(_GpuGenerator if _is_gpu(device) else _Generator)


class _GpuGenerator(_Generator):
    device = GPU


class StandIn:
    """The device: which storages are its own.

    waits: how often the CPU has waited for it so far. unchecked: whether anything may meet just now.
    """

    device = torch.device("cuda")
    """As a user names it; a tensor's own has a number."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef] = {}
        self.unchecked = False
        self.waits = 0

    def holds(self, tensor: Tensor) -> bool:
        return _storage(tensor)._cdata in self._known

    def take(self, found: Any) -> None:
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                # A reference keeps the address from being another storage's.
                self._known[_storage(tensor)._cdata] = StorageWeakRef(_storage(tensor))  # type: ignore[no-untyped-call]
        if len(self._known) > 10_000:
            self._known = {place: each for place, each in self._known.items() if not each.expired()}  # type: ignore[no-untyped-call]

    def give_back(self, tensor: Tensor) -> None:
        self._known.pop(_storage(tensor)._cdata, None)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


class _Meetings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, storages: StandIn) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages = storages

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        on_gpu = [self._storages.holds(each) for each in tensors]
        if not self._storages.unchecked:
            _check(operation, tensors, on_gpu)
        by_mask = operation in (*_READS_AT, *_WRITES_AT) and any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in tree_leaves(args[1])
        )
        self._storages.waits += (operation in _WAITS or by_mask) and any(on_gpu)
        found = operation(*args, **(kwargs or {}))
        if any(on_gpu) and operation != _OPS.copy_.default:
            self._storages.take(found)
        return found


def _check(operation: Any, tensors: list[Tensor], on_gpu: list[bool]) -> None:
    if not any(on_gpu) or operation in _ACROSS:
        return
    # A single number may come from the CPU.
    strange = [tensor.ndim > 0 and not held for tensor, held in zip(tensors, on_gpu, strict=True)]
    if operation in _READS_AT or operation in _WRITES_AT:
        values = strange[-1:] if operation in _WRITES_AT else []
        strange = [not on_gpu[0], *values]
    if any(strange):
        met = ", ".join(
            f"{tuple(tensor.shape)} {'cuda' if held else 'cpu'}" for tensor, held in zip(tensors, on_gpu, strict=True)
        )
        raise MismatchError(f"{operation} of {met}")


def _check_generator(work: str, generator: torch.Generator | None, on_gpu: bool) -> None:
    if generator is not None and isinstance(generator, _GpuGenerator) != on_gpu:
        raise MismatchError(f"{work} on {'cuda' if on_gpu else 'cpu'} with a generator on {generator.device}")


class _Moved(torch.autograd.Function):
    """A tensor on the other device; its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, move: Callable[[Tensor, bool], Tensor], to_gpu: bool) -> Tensor:
        ctx.move, ctx.to_gpu = move, to_gpu
        return move(tensor.detach(), to_gpu)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.move(gradient, not ctx.to_gpu), None, None


@contextmanager
def stand_in_gpu(patch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Inside, this machine seems to have one CUDA device, whose tensors are checked."""
    storages = StandIn()
    _patch_cuda(patch)
    _patch_tensors(patch, storages)
    _patch_makers(patch, storages)
    patch.setattr(torch, "Generator", _Generator)
    with _Meetings(storages):
        yield storages


def _patch_cuda(patch: pytest.MonkeyPatch) -> None:
    autocast = torch.autocast
    patch.setattr(torch, "autocast", lambda _kind, **settings: autocast("cpu", **settings))
    state = torch.get_rng_state
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "stand-in",
        "get_device_capability": (9, 0),
        "max_memory_allocated": 0,
        "is_current_stream_capturing": False,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, functools.partial(_answer, answer))
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache", "set_rng_state", "manual_seed_all"):
        patch.setattr(torch.cuda, name, functools.partial(_answer, None))
    patch.setattr(torch.cuda, "get_rng_state", lambda *_: state())
    for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
        patch.setattr(torch.optim.Optimizer, name, functools.partial(_answer, None), raising=False)


def _answer(answer: Any, *_: Any) -> Any:
    return answer


def _patch_tensors(patch: pytest.MonkeyPatch, storages: StandIn) -> None:
    stand_ins = _Methods(storages)
    for name, stand_in in {
        "to": _method(stand_ins.to),
        "cpu": lambda tensor, **_: stand_ins.moved(tensor, False),
        "cuda": lambda tensor, *_, **__: stand_ins.moved(tensor, True),
        "numpy": _method(stand_ins.numpy),
        "__array__": lambda tensor, *dtype: stand_ins.numpy(tensor).astype(*dtype or [None], copy=False),
        "device": property(lambda tensor: GPU if storages.holds(tensor) else CPU),
        "is_cuda": property(storages.holds),
        "is_cpu": property(lambda tensor: not storages.holds(tensor)),
    }.items():
        patch.setattr(torch.Tensor, name, stand_in)
    owner: Any
    for owner, name in _WITH_HELPERS:
        patch.setattr(owner, name, _unchecked(getattr(owner, name), storages))
    for owner, name in _DRAWS:
        patch.setattr(owner, name, _drawn(getattr(owner, name), storages))


def _method(work: Callable[..., Any]) -> Callable[..., Any]:
    """The same as a plain function, which a class makes a method of."""

    def of(tensor: Tensor, *args: Any, **settings: Any) -> Any:
        return work(tensor, *args, **settings)

    return of


class _Methods:
    """What stands for the methods of tensors that go from one device to the other."""

    def __init__(self, storages: StandIn) -> None:
        self._storages = storages
        self._to, self._numpy = torch.Tensor.to, torch.Tensor.numpy

    def to(self, tensor: Tensor, *args: Any, **settings: Any) -> Tensor:
        target = settings.pop("device", None)
        rest = list(args)
        if args and isinstance(args[0], str | torch.device | int):
            target = rest.pop(0)
        elif args and isinstance(args[0], Tensor):
            target, rest[0] = args[0].device, args[0].dtype
        if target is not None and torch.device(target).type == "meta":
            return self._to(tensor, target)
        rest = [each for each in rest if isinstance(each, torch.dtype)]
        blocking = not settings.pop("non_blocking", False)
        there = tensor if target is None else self.moved(tensor, _is_gpu(target), blocking)
        return self._to(there, *rest, **settings) if rest or settings else there

    def moved(self, tensor: Tensor, to_gpu: bool, blocking: bool = True) -> Tensor:
        if self._storages.holds(tensor) == to_gpu:
            return tensor
        self._storages.waits += blocking or not to_gpu
        if tensor.requires_grad and torch.is_grad_enabled():
            result: Tensor = _Moved.apply(tensor, self._copied, to_gpu)
            return result
        return self._copied(tensor, to_gpu)

    def _copied(self, tensor: Tensor, to_gpu: bool) -> Tensor:
        copy = self._to(tensor, tensor.dtype, copy=True)
        (self._storages.take if to_gpu else self._storages.give_back)(copy)
        return copy

    def numpy(self, tensor: Tensor, **settings: Any) -> Any:
        if self._storages.holds(tensor):
            raise MismatchError("a CUDA tensor as a NumPy array")
        return self._numpy(tensor, **settings)


def _unchecked(work: Callable[..., Any], storages: StandIn) -> Callable[..., Any]:
    def done(*args: Any, **settings: Any) -> Any:
        storages.unchecked = True
        try:
            return work(*args, **settings)
        finally:
            storages.unchecked = False

    return done


def _drawn(work: Callable[..., Tensor], storages: StandIn) -> Callable[..., Tensor]:
    @functools.wraps(work)
    def done(*args: Any, **settings: Any) -> Tensor:
        given = [each for each in args if isinstance(each, Tensor)]
        if given:
            _check_generator(work.__name__, settings.get("generator"), storages.holds(given[0]))
        return work(*args, **settings)

    return done


def _patch_makers(patch: pytest.MonkeyPatch, storages: StandIn) -> None:
    for name in _MAKERS:
        patch.setattr(torch, name, _made(getattr(torch, name), storages, like=False))
    for name in _LIKE_ANOTHER:
        patch.setattr(torch, name, _made(getattr(torch, name), storages, like=True))
    for name in _LIKE_ITSELF:
        patch.setattr(torch.Tensor, name, _made(getattr(torch.Tensor, name), storages, like=True))


def _made(make: Callable[..., Tensor], storages: StandIn, like: bool) -> Callable[..., Tensor]:
    """like: it is made on the first argument's device, if none is named."""

    @functools.wraps(make)
    def done(*args: Any, device: Any = None, **settings: Any) -> Tensor:
        if device is not None and torch.device(device).type not in ("cpu", "cuda"):
            return make(*args, device=device, **settings)
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if device is None and not like and source is not None:
            device = source.device
        on_gpu = _is_gpu(device) if device is not None else like and storages.holds(args[0])
        _check_generator(make.__name__, settings.get("generator"), on_gpu)
        if source is not None and not like:
            return source.to(device).to(settings.get("dtype", source.dtype))
        if device is not None:
            settings["device"] = CPU
        found = make(*args, **settings)
        (storages.take if on_gpu else storages.give_back)(found)
        return found

    return done
