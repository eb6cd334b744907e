"""The weights of a Keras HDF5 file, by layer names, put into a torch module whose layers have the same names."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from gauntlet.errors import DataError, ShapeError
from gauntlet.formats.hdf5 import WEIGHTS_LIMIT, Hdf5, opened

__all__ = ["Place", "keras_arrays", "load_keras"]

Array = npt.NDArray[np.float32]

_WHOLE = "model_weights/"
_OTHER = ("optimizer_weights/", "top_level_model_weights/")
_RANDOM = "seed_generator_state"
_TOTAL = 1 << 32


@dataclass(frozen=True)
class Place:
    """Where a module's weights stand in the file. kernels: what its kernel may be called."""

    layer: str
    kernels: tuple[str, ...] = ("kernel",)


def keras_arrays(path: Path) -> dict[str, Array]:
    """Path inside the file to its array, of a weight-only or of a whole-model file; `model_weights/` is taken off.

    DataError names the file and an array that is too large, no number or not finite.
    """
    with opened(path) as file:
        whole = any(name.startswith(_WHOLE) for name in file.names)
        prefix = _WHOLE if whole else ""
        names = [name for name in file.names if name.startswith(prefix) and not name.endswith(_RANDOM)]
        names = [name for name in names if not name.startswith(_OTHER)]
        if not names:
            raise DataError(f"{path} holds no weights of a Keras model")
        if any("/vars/" in f"/{name}" for name in names):
            raise DataError(
                f"{path} is a `.weights.h5` file of Keras 3, which doesn't name the layers; save the whole model as "
                "`.h5` instead"
            )
        _check_total(file, names)
        return {name.removeprefix(prefix): _array(file, name) for name in names}


def _check_total(file: Hdf5, names: list[str]) -> None:
    total = sum(file.form(name).bytes for name in names)
    for name in names:
        file.check(name, WEIGHTS_LIMIT)
    if total > _TOTAL:
        raise DataError(f"{file.path}: its weights have {total:,} bytes; legal: at most {_TOTAL:,}")


def _array(file: Hdf5, name: str) -> Array:
    array = file.array(name, WEIGHTS_LIMIT)
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape)
    if not np.isfinite(made).all():
        raise DataError(f"{file.path}: {name} holds NaN or infinite weights")
    return made


@torch.no_grad()
def load_keras(
    body: nn.Module,
    arrays: Mapping[str, Array],
    shape: tuple[int, int, int],
    where: str,
) -> None:
    """Put the arrays into `body`, which takes images [N, *shape] and flattens them in NCHW order.

    Kernels HWIO become OIHW; a dense layer behind a flattening has its inputs, in channels-last order there, put in
    the order here. Modules are called as the layers are, unless the body's `places` says otherwise (module path to
    `Place`). where: how an error names the file. DataError for what is missing, superfluous or of another shape, and
    for a body that can't be traced.
    """
    places = getattr(body, "places", {})
    loading = _Loading(body, dict(arrays), where, places, _orders(body, shape, where))
    for path, module in body.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            loading.fill(path, module)
    if loading.left:
        known = ", ".join(sorted({loading.place(path).layer for path in loading.filled}))
        raise DataError(f"{where}: {min(loading.left)} belongs to no layer of the model, which are: {known}")


@dataclass(eq=False)
class _Loading:
    """left: the arrays that nothing has taken yet. orders: by module path, see `_Orders`."""

    body: nn.Module
    left: dict[str, Array]
    where: str
    places: Mapping[str, Place]
    orders: Mapping[str, Tensor]
    filled: list[str] = field(default_factory=list)

    def place(self, path: str) -> Place:
        return self.places.get(path) or Place(path)

    def fill(self, path: str, module: nn.Module) -> None:
        place, order = self.place(path), self.orders.get(path)
        self.filled.append(path)
        if isinstance(module, nn.Conv2d):
            self._put(place, place.kernels, module.weight, _conv_form(module, place))
        elif isinstance(module, nn.Linear):
            due = (module.in_features, module.out_features)
            kernel = self._take(place, place.kernels, due)
            module.weight.copy_((kernel if order is None else kernel[order]).T)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            self._normalisation(place, module, order)
            return
        else:
            raise DataError(f"{self.where}: layer {path} is a {type(module).__name__}, which Keras files don't fill")
        if module.bias is not None:
            module.bias.copy_(self._take(place, ("bias",), tuple(module.bias.shape)))

    def _put(self, place: Place, names: tuple[str, ...], target: Tensor, form: _Form) -> None:
        kernel = self._take(place, names, form.due)
        target.copy_(kernel.permute(form.permutation).reshape(target.shape))

    def _normalisation(self, place: Place, module: nn.BatchNorm1d | nn.BatchNorm2d, order: Tensor | None) -> None:
        assert module.running_mean is not None
        assert module.running_var is not None
        targets: dict[str, Tensor] = {"moving_mean": module.running_mean, "moving_variance": module.running_var}
        # Keras leaves out what `scale` and `center` switch off.
        for name, weight, plain in (("gamma", module.weight, 1.0), ("beta", module.bias, 0.0)):
            if self._find(place, (name,)) is None:
                weight.fill_(plain)
            else:
                targets[name] = weight
        for name, target in targets.items():
            values = self._take(place, (name,), tuple(target.shape))
            target.copy_(values if order is None else values[order])
        if module.running_var.min() < 0:
            raise DataError(f"{self.where}: layer {place.layer}: its moving_variance is negative")

    def _find(self, place: Place, names: tuple[str, ...]) -> str | None:
        found = [
            name
            for name in self.left
            if name.startswith(f"{place.layer}/") and name.rpartition("/")[2].removesuffix(":0") in names
        ]
        if len(found) > 1:
            raise DataError(f"{self.where}: layer {place.layer} has two arrays called {names[0]}: {', '.join(found)}")
        return found[0] if found else None

    def _take(self, place: Place, names: tuple[str, ...], due: tuple[int, ...]) -> Tensor:
        name = self._find(place, names)
        if name is None:
            raise DataError(f"{self.where} has no {names[0]} for the layer {place.layer}")
        array = self.left.pop(name)
        if array.shape != due:
            raise ShapeError(
                f"{self.where}: {name} has the shape {list(array.shape)}; due: {list(due)}",
                self.filled[-1],
                array.shape[::-1],
                due[::-1],
            )
        return torch.from_numpy(array)


@dataclass(frozen=True)
class _Form:
    """due: a kernel's shape in Keras. permutation: of its axes, to torch's."""

    due: tuple[int, ...]
    permutation: tuple[int, ...]


def _conv_form(module: nn.Conv2d, place: Place) -> _Form:
    height, width = module.kernel_size
    if "depthwise_kernel" in place.kernels:
        inputs = module.in_channels
        return _Form((height, width, inputs, module.out_channels // inputs), (2, 3, 0, 1))
    return _Form((height, width, module.in_channels // module.groups, module.out_channels), (3, 2, 0, 1))


def _orders(body: nn.Module, shape: tuple[int, int, int], where: str) -> dict[str, Tensor]:
    """Module path to the order of its flat inputs, int64 [F], where it isn't Keras's: order[ours] = theirs."""
    skeleton = copy.deepcopy(body).to("meta").eval()
    try:
        traced = fx.GraphModule(skeleton, fx.Tracer().trace(skeleton))
        run = _Orders(traced)
        run.run(torch.empty(1, *shape, device="meta"))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # a forward method of any kind has just been run on placeholders
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{where}: the model's layers can't be followed ({reason[0]}), as Keras's weights need"
        ) from error
    return run.found


class _Orders(fx.Interpreter):
    """Follows how flat values are ordered here and in Keras."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Tensor] = {}
        self._known: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = [self.env[node] for node in n.all_input_nodes]
        result = super().run_node(n)
        order = self._order(n, before, result) if isinstance(result, Tensor) and result.ndim == 2 else None
        if order is not None:
            self._known[n] = order
        return result

    def _order(self, node: fx.Node, before: list[Any], result: Tensor) -> Tensor | None:
        sources = node.all_input_nodes
        if len(before) == 1 and before[0].ndim == 4:
            channels, height, width = before[0].shape[1:]
            flattened = result.shape[1] == channels * height * width and height * width > 1
            return _channels_last(channels, height, width) if flattened else None
        orders = [self._known.get(source) for source in sources]
        if not any(order is not None for order in orders) or node.op == "output":
            return None
        if node.op == "call_module":
            module = self.submodules[str(node.target)]
            if isinstance(module, nn.Linear | nn.BatchNorm1d):
                assert orders[0] is not None
                self.found[str(node.target)] = orders[0]
            if isinstance(module, nn.Linear):
                return None
        filled = [
            torch.arange(value.shape[1]) if order is None else order
            for order, value in zip(orders, before, strict=True)
        ]
        if node.target is torch.cat:
            return _joined(filled)
        if any(not torch.equal(order, filled[0]) for order in filled):
            raise DataError(f"{node.name} sums values that were flattened from maps of different shapes")
        return filled[0]


def _channels_last(channels: int, height: int, width: int) -> Tensor:
    places = torch.arange(math.prod((height, width, channels)))
    return places.view(height, width, channels).permute(2, 0, 1).flatten()


def _joined(orders: list[Tensor]) -> Tensor:
    starts = [0, *torch.tensor([len(order) for order in orders]).cumsum(0).tolist()[:-1]]
    return torch.cat([order + start for order, start in zip(orders, starts, strict=True)])
