"""Two networks that should say the same: how far one contradicts the other, image by image."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from gauntlet.images import Images
from gauntlet.inference import inference
from gauntlet.out_of_memory import parts

__all__ = ["contradiction", "dissent"]

_AT_ONCE = {"cpu": 128, "cuda": 2048}
"""Images a pass, as the engine predicts (gauntlet.training)."""


def dissent(logits: Tensor, classes: Tensor) -> Tensor:
    """float32 [N]: the margin by which logits [N, K >= 2] speak for another class than the given ones, int64 [N].

    Above 0 exactly where their argmax is another class, ties included, and 0 or below where it is the same.
    """
    values = logits.float()
    own = values.gather(1, classes[:, None])
    others = values.scatter(1, classes[:, None], -torch.inf).amax(1, keepdim=True)
    margin = (others - own).squeeze(1)
    # Equal logits have an argmax all the same: its margin, of 0, is to stay on its own side.
    smallest = torch.finfo(torch.float32).tiny
    return torch.where(values.argmax(1) == classes, margin.clamp(max=0), margin.clamp(min=smallest))


def contradiction(one: nn.Module, other: nn.Module, images: Images, *, dtype: torch.dtype) -> Tensor:
    """float32 [N]: by what margin `other` contradicts the class that `one` gives to each image; see `dissent`.

    images: float [N, C, H, W] in [0, 1], on the networks' device. They are called in the mode that they are in: eval
    mode judges every image by itself, but for rounding. dtype: see `gauntlet.precision`.
    """
    found = torch.empty(len(images), device=images.device)

    def judge(part: slice) -> None:
        batch = images[part].contiguous(memory_format=torch.channels_last)
        found[part] = dissent(other(batch), one(batch).argmax(1))

    further = nullcontext() if other is one else inference(other, images.device, dtype)
    with inference(one, images.device, dtype), further:
        parts(len(images), _AT_ONCE[images.device.type], judge)
    return found
