"""The network that every part handles: normalisation first (trap T2), then the architecture's own module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gauntlet.images import Images

__all__ = ["Network", "Normalise", "Structure"]


class Normalise(nn.Module):
    """(x - mean) / std by channel, with buffers that travel with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Images) -> Tensor:
        return (images - self.mean) / self.std


class Structure:
    """What has been found out about a network's structure; all its copies share it."""

    def __init__(self) -> None:
        self.flops: dict[tuple[int, int, int], float] = {}
        """Floating-point operations of a forward pass of one image, by the image's shape [C, H, W]."""

    def __deepcopy__(self, memo: dict[int, object]) -> Structure:
        return self


class Network(nn.Module):
    """Images in [0, 1] to logits [N, classes].

    feature_layer and last_conv are module paths inside `body`; the feature layer's output, flattened, is the
    network's representation. last_conv is None for a network without convolutions.
    """

    def __init__(
        self,
        body: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        feature_layer: str,
        last_conv: str | None,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.body = body
        self.feature_layer = feature_layer
        self.last_conv = last_conv
        self.structure = Structure()

    def forward(self, images: Images) -> Tensor:
        logits: Tensor = self.body(self.normalise(images))
        return logits

    def place(self, device: torch.device) -> Network:
        """Itself on `device`, in channels_last layout."""
        return self.to(device).to(memory_format=torch.channels_last)

    def features_and_logits(self, images: Images) -> tuple[Tensor, Tensor]:
        """The flattened output of the feature layer [N, D] and the logits [N, classes], of one forward pass."""
        tapped: list[Tensor] = []
        layer = self.body.get_submodule(self.feature_layer)
        handle = layer.register_forward_hook(lambda _module, _inputs, output: tapped.append(output))
        try:
            logits = self(images)
        finally:
            handle.remove()
        return tapped[-1].flatten(1), logits
