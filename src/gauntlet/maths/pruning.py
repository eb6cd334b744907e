"""Pruning channels of a convolution: which are dormant, what a network answers without them, and keeping them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gauntlet.images import Images, chunks, to_float
from gauntlet.maths.cut import Cut, Split, cut
from gauntlet.network import Network

__all__ = ["activations", "convolution", "hold_pruned", "last_convolution", "prune", "sweep"]

_AT_ONCE = {"cpu": 128, "cuda": 2048}
"""Images a pass: on a CPU, what its caches hold."""
_SUMMED = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Values a block of running sums: 16 MB, and 256 MB."""


def last_convolution(network: Network) -> nn.Conv2d:
    """The layer that is pruned unless another is named; ValueError for a network that names none."""
    layer = None if network.last_conv is None else network.body.get_submodule(network.last_conv)
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(f"the last convolution {network.last_conv} is {type(layer).__name__}, not Conv2d")
    return layer


def convolution(network: Network, path: str = "") -> nn.Conv2d:
    """The convolution at a module path inside the body, or the last one; ValueError that lists those there are."""
    if not path:
        return last_convolution(network)
    layers = {name: part for name, part in network.body.named_modules() if isinstance(part, nn.Conv2d)}
    if path not in layers:
        raise ValueError(f"layer = {path!r} is no convolution of this network; legal: {', '.join(layers) or 'none'}")
    return layers[path]


def activations(network: Network, images: Tensor, path: str = "") -> Tensor:
    """float64 [channels] on the CPU: how active each channel of a convolution is on images; path as in `convolution`.

    images: uint8 [N, C, H, W] of any device. The mean, over images and positions, of the absolute value behind the
    first activation function that follows the convolution, through normalisation, pooling and a residual sum if they
    stand between (for a ReLU simply the mean); of the convolution's own output where another layer comes first. Puts
    the network in eval mode.
    """
    layer = convolution(network, path)
    total = torch.zeros(layer.out_channels, dtype=torch.float64, device=layer.weight.device)
    observe = _observer(network.eval(), layer, path)
    with torch.inference_mode():
        for batch in _batches(network, images):
            total += observe(batch).abs().flatten(2).mean(2, dtype=torch.float64).sum(0)
    return total.cpu() / len(images)


def _observer(network: Network, layer: nn.Conv2d, path: str) -> Callable[[Tensor], Tensor]:
    """A batch of normalised images to the values [N, channels, ...] whose size counts as activation."""
    parts = _cut(network, path)
    if parts is not None and parts.activation is not None:
        front, activation = parts.front, parts.activation
        return lambda batch: activation(*front(batch))

    def own_output(batch: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
        try:
            network.body(batch)
        finally:
            handle.remove()
        return seen[-1]

    return own_output


def sweep(network: Network, images: Tensor, order: Tensor, levels: Sequence[int], path: str = "") -> Tensor:
    """int64 [len(levels), N] on the CPU: the class of each image with the first `level` channels of `order` pruned.

    images: uint8 [N, C, H, W] of any device; order: int64, distinct output channels of the convolution at `path` (the
    last one by default); levels: from 0 to len(order), in any order. A pruned channel's output, bias included, is 0.
    Puts the network in eval mode, and leaves its weights alone. ValueError for other orders and levels.

    What doesn't depend on the convolution runs once, not once a level. Where the rest keeps channels apart up to a
    linear layer, a channel's share in that layer's output is a term of a sum: its terms with the channel and without
    it are computed once, and a level is a partial sum of their differences (rounded otherwise than by a full forward
    pass, in the last bits). Where it doesn't, the rest runs for each level; a network that torch.fx can't trace is run
    whole.
    """
    layer = convolution(network, path)
    order = order.to(layer.weight.device)
    if len(torch.unique(order)) < len(order) or not all(
        0 <= channel < layer.out_channels for channel in order.tolist()
    ):
        raise ValueError(f"an order of channels names each at most once, from 0 to {layer.out_channels - 1}")
    if not all(0 <= level <= len(order) for level in levels):
        raise ValueError(f"a level is a number of pruned channels from 0 to {len(order)}: {list(levels)}")
    if not levels or not len(images):
        return torch.empty(len(levels), len(images), dtype=torch.int64)
    ascending = sorted(set(levels))
    answer = _answerer(network.eval(), layer, path, order[: ascending[-1]], ascending)
    with torch.inference_mode():
        found = torch.cat([answer(batch) for batch in _batches(network, images)], 1).cpu()
    return found[[ascending.index(level) for level in levels]]


def prune(layer: nn.Conv2d, channels: Tensor) -> None:
    """Set the output of `channels` (int64) to 0 for good: their kernels and their biases."""
    with torch.no_grad():
        layer.weight[channels] = 0
        if layer.bias is not None:
            layer.bias[channels] = 0


@contextmanager
def hold_pruned(layer: nn.Conv2d, channels: Tensor) -> Iterator[None]:
    """Keep what `prune` has zeroed at 0 while the layer trains: its gradients are 0.

    That holds for every optimizer whose step is 0 for weights and gradients that always were 0: SGD, Adam, Muon...
    """
    pruned = channels.to(layer.weight.device)

    def without(gradient: Tensor) -> Tensor:
        return gradient.index_fill(0, pruned.to(gradient.device), 0)

    trained = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
    handles = [parameter.register_hook(without) for parameter in trained]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cut(network: Network, path: str) -> Cut | None:
    path = path or network.last_conv or ""
    return cut(network.body, path) if path else None


def _batches(network: Network, images: Tensor) -> Iterator[Images]:
    """Normalised images, on the network's device and in its layout."""
    device = network.normalise.mean.device
    for part in chunks(len(images), _AT_ONCE[device.type]):
        batch = to_float(images[part].to(device)).contiguous(memory_format=torch.channels_last)
        yield network.normalise(batch)


def _answerer(
    network: Network, layer: nn.Conv2d, path: str, order: Tensor, levels: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """A batch of normalised images to int64 [levels, N], in the cheapest way that the network allows."""
    parts = _cut(network, path)
    if parts is None:
        return lambda batch: _by_whole_passes(network, layer, order, levels, batch)
    if parts.split is None:
        return lambda batch: _by_the_rest(parts.rest, order, levels, *parts.front(batch))
    split, front = parts.split, parts.front
    weight = split.linear.weight.detach().reshape(split.linear.out_features, layer.out_channels, -1)
    factors = weight[:, order].permute(1, 2, 0)
    return lambda batch: _by_sums(split, factors, order, levels, *front(batch))


def _by_whole_passes(network: Network, layer: nn.Conv2d, order: Tensor, levels: Sequence[int], batch: Tensor) -> Tensor:
    found = []
    for level in levels:
        handle = layer.register_forward_hook(lambda _module, _inputs, output, n=level: _without(output, order[:n]))
        try:
            found.append(network.body(batch).argmax(1))
        finally:
            handle.remove()
    return torch.stack(found)


def _by_the_rest(rest: nn.Module, order: Tensor, levels: Sequence[int], maps: Tensor, *sides: Tensor) -> Tensor:
    return torch.stack([rest(_without(maps, order[:level]), *sides).argmax(1) for level in levels])


def _without(maps: Tensor, channels: Tensor) -> Tensor:
    return maps.index_fill(1, channels, 0)


def _by_sums(
    split: Split, weight: Tensor, order: Tensor, levels: Sequence[int], maps: Tensor, *sides: Tensor
) -> Tensor:
    """weight: [len(order), F, D], of the linear layer, by pruned channel."""
    images, channels = maps.shape[:2]
    # Nothing but the maps tells one image from another where there are no sides: one blank image stands for all.
    blank = torch.zeros_like(maps if sides else maps[:1])
    kept = split.before(maps, *sides)
    gone = split.before(blank, *sides)
    change = (gone - kept).reshape(images, channels, -1)[:, order].transpose(0, 1)
    total = split.linear(kept)
    block = max(1, _SUMMED[maps.device.type] // total.numel())
    found = []
    for part in chunks(max(1, len(order)), block):
        sums = total.new_empty(1 + len(change[part]), *total.shape)
        sums[0] = total
        for before, after, term, factor in zip(sums[:-1], sums[1:], change[part], weight[part], strict=True):
            torch.addmm(before, term, factor, out=after)
        if len(order) == channels == part.stop:
            sums[-1] = split.linear(gone)  # without rounding: where no channel is left, classes may be exactly equal
        total = sums[-1].clone()
        # Level 0 is the first block's alone; every other is found in the block that ends with it.
        wanted = [level - part.start for level in levels if part.start < level <= part.stop or level == part.start == 0]
        if wanted:
            chosen = sums if len(wanted) == len(sums) else sums[wanted]
            found.append(split.after(chosen.flatten(0, 1)).argmax(1).view(-1, images))
    return torch.cat(found)
