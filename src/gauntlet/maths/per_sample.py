"""Gradients of each sample by itself: clipped and summed, or squared and averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy, unfold

from gauntlet.images import Images, chunks

__all__ = ["clipped_sum", "fisher_diagonal", "frozen_statistics"]

_VALUES = {"cpu": 1 << 25, "cuda": 1 << 29}
"""Gradient values that are held at once: 128 MB and 2 GB."""

Gradients = dict[str, Tensor]


def clipped_sum(network: nn.Module, images: Images, labels: Tensor, clip: float) -> tuple[Gradients, Tensor]:
    """The sum over samples of the gradient of its cross-entropy, each scaled down to a norm of at most `clip`, by
    parameter's name; and the losses [N].

    Abadi et al. 2016, arXiv:1607.00133, algorithm 1: the norm is over all parameters. images: [N, C, H, W]. A network
    with batch normalisation must hold its statistics fixed (`frozen_statistics`): otherwise a sample has no gradient of
    its own. Random layers draw for each sample. Of linear layers, convolutions and normalisations the gradients come
    from what went in and what came back, in one pass (Goodfellow 2015, arXiv:1510.01799; Rochette et al. 2019,
    arXiv:1912.06015); a network with parameters elsewhere is differentiated sample by sample.
    """
    parts = _parts(network)
    if parts is None:
        return _clipped_one_by_one(network, images, labels, clip)
    seen, losses = _passed(network, images, labels, parts)
    total: Gradients = {}
    with torch.autocast(images.device.type, enabled=False):
        squares = sum((step.squares() for step in seen.values()), torch.zeros_like(losses))
        factors = clip / squares.sqrt().clamp(min=clip)
        for name, step in seen.items():
            found = step.weighted(factors)
            total |= {f"{name}.{kind}" if name else kind: value for kind, value in found.items()}
    return total, losses


def fisher_diagonal(network: nn.Module, images: Images, labels: Tensor) -> Gradients:
    """The mean over samples of the squared gradient of its cross-entropy: the diagonal of the Fisher information.

    labels: drawn from the network's own predictions for the true Fisher matrix, the data's for the empirical one.
    Kirkpatrick et al. 2017, arXiv:1612.00796. See `clipped_sum` for batch normalisation.
    """
    total: Gradients = {}
    for gradients, _ in _by_sample(network, images, labels):
        for name, gradient in gradients.items():
            part = gradient.square().sum(0)
            total[name] = total[name] + part if name in total else part
    return {name: value / len(images) for name, value in total.items()}


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation goes by its running statistics, and dropout still draws; the modes come back."""
    held = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    modes = [module.training for module in held]
    for module in held:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(held, modes, strict=True):
            module.train(training)


@dataclass(eq=False)
class _Step:
    """One layer's part in a pass: input [N, ...], gradient of its output [N, ...], and how its parameters saw them."""

    layer: nn.Module
    given: Tensor
    back: Tensor
    kept: list[Gradients] = field(default_factory=list)

    def squares(self) -> Tensor:
        """float [N]: the squared norm of each sample's gradient for the layer's parameters."""
        if isinstance(self.layer, nn.Linear):
            back = self.back.square().sum(1)
            weight = back * self.given.square().sum(1)
            return weight + back if self.layer.bias is not None else weight
        return torch.cat([_sum_of_squares(part) for part in self._pieces()])

    def weighted(self, factors: Tensor) -> Gradients:
        """The gradient of each parameter, its samples weighted by factors [N]."""
        if isinstance(self.layer, nn.Linear):
            scaled = self.back * factors[:, None]
            found = {"weight": scaled.T @ self.given, "bias": scaled.sum(0)}
            return found if self.layer.bias is not None else {"weight": found["weight"]}
        total: Gradients = {}
        start = 0
        for piece in self._pieces():
            size = len(next(iter(piece.values())))
            for name, value in piece.items():
                part = torch.tensordot(factors[start : start + size], value, dims=1)
                total[name] = total[name] + part if name in total else part
            start += size
        return total

    def _pieces(self) -> Iterator[Gradients]:
        """Each sample's gradients [n, ...] of a convolution or a normalisation, some samples at a time."""
        size = sum(value.numel() for value in self.layer.parameters(recurse=False))
        limit = max(1, _VALUES[self.given.device.type] // size)
        if self.kept:
            yield from self.kept
            return
        for part in chunks(len(self.given), limit):
            given, back = self.given[part], self.back[part]
            made = (_of_convolution if isinstance(self.layer, nn.Conv2d) else _of_normalisation)(
                self.layer, given, back
            )
            if len(self.given) <= limit:
                # Asked for twice: once for the norms, once for the sum.
                self.kept.append(made)
            yield made


def _sum_of_squares(gradients: Mapping[str, Tensor]) -> Tensor:
    """float [n]: the squared norm over all of a sample's gradients [n, ...]."""
    return torch.stack([value.flatten(1).square().sum(1) for value in gradients.values()]).sum(0)


def _of_convolution(layer: nn.Module, given: Tensor, back: Tensor) -> Gradients:
    assert isinstance(layer, nn.Conv2d)
    padding = layer.padding if not isinstance(layer.padding, str) else (0, 0)
    columns = unfold(given, layer.kernel_size, layer.dilation, padding, layer.stride)
    errors = back.flatten(2)
    found = {"weight": (errors @ columns.transpose(1, 2)).view(len(given), *layer.weight.shape)}
    return found | ({"bias": errors.sum(2)} if layer.bias is not None else {})


def _of_normalisation(layer: nn.Module, given: Tensor, back: Tensor) -> Gradients:
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, *(1,) * (given.ndim - 2))
    mean, deviation = layer.running_mean.view(shape), (layer.running_var + layer.eps).sqrt().view(shape)
    scaled = (given - mean) / deviation
    return {
        "weight": (scaled * back).flatten(2).sum(2) if given.ndim > 2 else scaled * back,
        "bias": back.flatten(2).sum(2) if given.ndim > 2 else back,
    }


def _parts(network: nn.Module) -> dict[str, nn.Module] | None:
    """The layers with trained parameters, by name; None when one of them is of a kind that isn't known here."""
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        own = list(module.parameters(recurse=False))
        if not own or not any(value.requires_grad for value in own):
            continue
        plain = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
        plain = plain and not isinstance(getattr(module, "padding", None), str)
        steady = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.track_running_stats
        if not (plain or steady or type(module) is nn.Linear) or not all(value.requires_grad for value in own):
            return None
        found[name] = module
    shared = sum(len(list(module.parameters(recurse=False))) for module in found.values())
    return found if shared == len({id(value) for value in network.parameters() if value.requires_grad}) else None


def _passed(
    network: nn.Module, images: Images, labels: Tensor, parts: Mapping[str, nn.Module]
) -> tuple[dict[str, _Step], Tensor]:
    given: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert name not in given, f"{name} is called twice in a pass"
            given[name], outputs[name] = inputs[0].detach(), output
            # What follows may change its input in place.
            return output.clone()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
    try:
        losses = cross_entropy(network(images).float(), labels, reduction="none")
    finally:
        for handle in handles:
            handle.remove()
    with torch.autocast(images.device.type, enabled=False):
        back = torch.autograd.grad(losses.sum(), list(outputs.values()))
    steps = {
        name: _Step(parts[name], given[name].float(), gradient.float())
        for name, gradient in zip(outputs, back, strict=True)
    }
    return steps, losses.detach()


def _clipped_one_by_one(network: nn.Module, images: Images, labels: Tensor, clip: float) -> tuple[Gradients, Tensor]:
    total: Gradients = {}
    losses = []
    for gradients, values in _by_sample(network, images, labels):
        factors = clip / _sum_of_squares(gradients).sqrt().clamp(min=clip)
        for name, gradient in gradients.items():
            part = torch.tensordot(factors, gradient, dims=1)
            total[name] = total[name] + part if name in total else part
        losses.append(values)
    return total, torch.cat(losses)


def _by_sample(network: nn.Module, images: Images, labels: Tensor) -> Iterator[tuple[Gradients, Tensor]]:
    """Gradients [n, ...] by name, and losses [n], of as many samples at once as memory should hold."""
    trained = {name: value.detach() for name, value in network.named_parameters() if value.requires_grad}
    rest = {name: value.detach() for name, value in network.named_parameters() if name not in trained}
    rest |= dict(network.named_buffers())
    every = vmap(grad_and_value(_loss_of(network, rest)), in_dims=(None, 0, 0), randomness="different")
    size = sum(value.numel() for value in trained.values())
    for part in chunks(len(images), max(1, _VALUES[images.device.type] // max(size, 1))):
        gradients, losses = every(trained, images[part], labels[part])
        yield gradients, losses.detach()


def _loss_of(network: nn.Module, rest: Gradients) -> Callable[[Gradients, Tensor, Tensor], Tensor]:
    def loss(parameters: Gradients, image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, (parameters, rest), (image[None],))
        return cross_entropy(logits.float(), label[None])

    return loss
