"""Batched augmentation on the device, on uint8, of images that already carry their trigger."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gauntlet.recipe import Recipe

__all__ = ["alternating_flip", "augment", "crop", "flip"]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image of [N, C, H, W] left to right with probability 1/2."""
    mirrored = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
    return torch.where(mirrored.to(images.device, non_blocking=True).view(-1, 1, 1, 1), images.flip(-1), images)


def alternating_flip(images: Tensor, mirrored: Tensor, epoch: int) -> Tensor:
    """Mirror in even epochs those of [N, C, H, W] that `mirrored`, bool [N], marks, and in odd ones all others.

    Every image is seen both ways within two epochs (Jordan 2024, arXiv:2404.00498), where chance shows a
    half of them twice the same way.
    """
    turned = mirrored ^ bool(epoch % 2)
    return torch.where(turned.view(-1, 1, 1, 1), images.flip(-1), images)


def crop(images: Tensor, padding: int, generator: torch.Generator, fill: str = "zeros") -> Tensor:
    """Shift each image of [N, C, H, W] by up to `padding` pixels each way.

    fill: what comes in, `zeros` or with `reflect` what lies as far inside the border (which isn't repeated).
    """
    count, _, height, width = images.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=generator.device)
    shifts = shifts.to(images.device, non_blocking=True)
    rows = shifts[0] + torch.arange(height, device=images.device)
    columns = shifts[1] + torch.arange(width, device=images.device)
    if fill == "reflect":
        rows, columns = _reflected(rows - padding, height), _reflected(columns - padding, width)
        shown = images.permute(0, 2, 3, 1)
    else:
        shown = pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    samples = torch.arange(count, device=images.device).view(-1, 1, 1)
    return shown[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places on a line, brought into [0, size) by reflections at its first and its last one."""
    if size == 1:
        return torch.zeros_like(places)
    there = places.remainder(2 * size - 2)
    return torch.minimum(there, 2 * size - 2 - there)


def augment(
    images: Tensor, recipe: Recipe, generator: torch.Generator, mirrored: Tensor | None = None, epoch: int = 0
) -> Tensor:
    """The recipe's augmentation of one batch; mirrored, bool [N], and epoch: see `alternating_flip`."""
    if "crop" in recipe.augmentation:
        images = crop(images, recipe.crop_padding, generator, recipe.crop_fill)
    if "flip" in recipe.augmentation:
        images = flip(images, generator)
    if mirrored is not None:
        images = alternating_flip(images, mirrored, epoch)
    return images
