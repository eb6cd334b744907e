"""What several architectures share: dropout, Keras's initialisation, the refusal of images that are too small."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts

__all__ = ["Dropout", "glorot_uniform", "kaiming_normal", "require_side"]

M = TypeVar("M", bound=nn.Module)

_ALL_64_BITS = -(2**63)
_STEPS = 1 << 16


class Dropout(nn.Dropout):
    """torch's dropout, whose masks take a quarter of the time on a CPU: a byte or two of a random word decide a value.

    p is rounded to the next of 65,536 steps. On other devices, and inside torch.func or torch.compile, it is torch's.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        steps = round(self.p * _STEPS)
        ours = not self.inplace and 0 < steps < _STEPS and images.device.type == "cpu"
        if not ours or torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(images):
            return super().forward(images)
        return images * _kept(images, steps).to(images.dtype).mul_(_STEPS / (_STEPS - steps))


@torch.no_grad()
def _kept(images: Tensor, steps: int) -> Tensor:
    """bool, shaped as `images` and laid out as they are where they are dense: False with probability steps / 65536."""
    bits = torch.uint8 if steps % 256 == 0 else torch.int16
    words = torch.empty(-(-images.numel() * bits.itemsize // 8), dtype=torch.int64, device="cpu")
    drawn = words.random_(_ALL_64_BITS, None).view(bits)[: images.numel()]
    kept = drawn >= steps // 256 if bits == torch.uint8 else drawn >= steps - _STEPS // 2
    shape = torch.empty_like(images, device="meta")
    return kept.as_strided(shape.size(), shape.stride())


def glorot_uniform(module: M) -> M:
    """`module`, its convolutions and dense layers drawn from Glorot's uniform distribution, biases zero.

    The default of Keras, so of the networks that were defined in it. Glorot & Bengio 2010.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def kaiming_normal(module: M) -> M:
    """`module`, its convolutions drawn from He's normal distribution (fan out, ReLU), their biases zero.

    Keeps the scale of the signal through deep stacks of ReLU layers. He et al. 2015, arXiv:1502.01852.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def require_side(who: str, facts: TaskFacts, least: int) -> None:
    """Raise SettingError when the images of a task are lower or narrower than `least` pixels."""
    _, height, width = facts.shape
    if min(height, width) < least:
        raise SettingError(
            f"{who} takes images of at least {least}x{least} pixels, and those of {facts.name} have {height}x{width}: "
            "choose another model or a task with larger images"
        )
