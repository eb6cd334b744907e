"""What several architectures share: Keras's initialisation and the refusal of images that are too small."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts

__all__ = ["glorot_uniform", "kaiming_normal", "require_side"]

M = TypeVar("M", bound=nn.Module)


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
