"""Layouts change where values lie in memory, never the values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gauntlet.images import to_float
from gauntlet.layout import channels_last_gradients, to_batch


def test_a_batch_is_channels_last_and_the_same_images() -> None:
    images = torch.randint(0, 256, (6, 3, 5, 7), dtype=torch.uint8)
    batch = to_batch(images)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, to_float(images))


def _gradients(body: nn.Sequential, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of the weights; and what reached the layer below Flatten."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        seen.append(outputs[0])

    handle = body[1].register_full_backward_hook(note)
    body.zero_grad()
    body(images).square().sum().backward()
    handle.remove()
    return [weight.grad.clone() for weight in body.parameters() if weight.grad is not None], seen


def test_gradients_keep_their_layout_and_their_values() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))
    body.to(memory_format=torch.channels_last)
    images = torch.rand(5, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    plain, before = _gradients(body, images)
    with channels_last_gradients(body):
        kept, within = _gradients(body, images)
        with torch.inference_mode():
            body(images)
    _, after = _gradients(body, images)
    assert all(torch.equal(one, other) for one, other in zip(plain, kept, strict=True))
    layouts = [seen[0].is_contiguous(memory_format=torch.channels_last) for seen in (before, within, after)]
    assert layouts == [False, True, False]
