"""Projected gradient ascent on a network's loss, for all images of a batch at once."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet.images import Images
from gauntlet.maths.gradients import image_gradients
from gauntlet.out_of_memory import parts

__all__ = ["Norm", "pgd", "project", "random_perturbation"]

Norm: TypeAlias = Literal["inf", "2", "1"]
"""The norm of a perturbation over all of an image's channels and pixels."""


def pgd(
    network: nn.Module,
    images: Images,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    step: float,
    iterations: int,
    generator: torch.Generator,
    random_start: bool,
    targeted: bool = False,
    batch: int = 512,
) -> Images:
    """Images within `eps` of `images` on which the network's cross-entropy is high (Madry et al. 2018, 1706.06083).

    images: float [N, C, H, W] in [0, 1], any device; labels: int64 [N], the true classes, or with `targeted` the
    classes to move to, towards which the loss falls instead. Every iteration goes `step` (in the norm's unit) in the
    steepest direction, clips to [0, 1] and projects onto the eps ball; the last iterate is returned, and no iteration
    is skipped when the network is fooled. `random_start` begins uniformly in the ball, clipped to [0, 1].

    Steepest directions: inf, the gradient's sign; 2, the gradient over its length, without what leads out of [0, 1]; 1,
    the whole step on the value of largest gradient as far as [0, 1] leaves room, the rest of it on the next, which is
    the exact maximum of the linearised loss within the box.

    The network keeps its train or eval mode and gets no parameter gradients. In train mode batch normalisation mixes
    the images of a pass and updates its statistics: call in eval mode unless that is wanted. `batch` images pass at a
    time; in eval mode the result doesn't depend on it but for rounding.
    """
    points = images.detach()
    if random_start:
        points = (points + random_perturbation(points, norm, eps, generator)).clamp_(0, 1)
    moved = torch.empty_like(points)

    def move(part: slice) -> None:
        here, centre = points[part], images[part]
        for _ in range(iterations):
            gradient = _loss_gradient(network, here, labels[part])
            there = (here + _steepest(here, -gradient if targeted else gradient, norm, step)).clamp_(0, 1)
            # The box contains the centre, so shrinking towards it doesn't leave the box again, but for rounding.
            here = (centre + project(there - centre, norm, eps)).clamp_(0, 1)
        moved[part] = here

    with image_gradients(network):
        parts(len(points), batch, move)
    return moved


def _loss_gradient(network: nn.Module, points: Images, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = points.detach().requires_grad_()
        loss = cross_entropy(network(leaf), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def _steepest(points: Images, gradient: Tensor, norm: Norm, step: float) -> Tensor:
    match norm:
        case "inf":
            return gradient.sign().mul_(step)
        case "2":
            outward = ((points <= 0) & (gradient < 0)) | ((points >= 1) & (gradient > 0))
            gradient = gradient.masked_fill(outward, 0)
            # A confident network's gradient is so small that its square underflows: scale by the largest entry first.
            gradient = gradient / _positive(gradient.abs().amax((1, 2, 3), keepdim=True))
            length = _length(gradient)
            # Where nothing leads anywhere inside the box, a large step over a tiny length would be infinite.
            return gradient.mul_((step / _positive(length)).masked_fill_(length == 0, 0))
        case "1":
            return _greedy(points.flatten(1), gradient.flatten(1), step).view(points.shape)


def _greedy(points: Tensor, gradient: Tensor, step: float) -> Tensor:
    """[N, D]: the step of L1 length `step` that the gradient favours most and that stays in [0, 1]."""
    order = gradient.abs().argsort(dim=1, descending=True, stable=True)
    room = torch.where(gradient > 0, 1 - points, points).gather(1, order)
    spent_before = room.cumsum(1) - room
    taken = torch.minimum((step - spent_before).clamp_(min=0), room)
    return torch.zeros_like(points).scatter_(1, order, taken).mul_(gradient.sign())


def project(perturbation: Tensor, norm: Norm, eps: float) -> Tensor:
    """The nearest perturbation [N, C, H, W], in Euclidean distance, whose norm is at most `eps` for each image."""
    match norm:
        case "inf":
            return perturbation.clamp(-eps, eps)
        case "2":
            return perturbation * (eps / _positive(_length(perturbation))).clamp_(max=1)
        case "1":
            return _project_l1(perturbation.flatten(1), eps).view(perturbation.shape)


def _project_l1(vectors: Tensor, eps: float) -> Tensor:
    """[N, D] onto the L1 ball, by soft thresholding (Duchi et al. 2008, ICML, figure 1)."""
    sizes = vectors.abs()
    descending = sizes.sort(dim=1, descending=True).values
    excess = descending.cumsum(1) - eps
    counts = torch.arange(1, sizes.shape[1] + 1, device=sizes.device, dtype=sizes.dtype)
    kept = (descending * counts > excess).sum(1, keepdim=True).clamp_(min=1)
    threshold = (excess.gather(1, kept - 1) / kept).clamp_(min=0)
    return vectors.sign() * (sizes - threshold).clamp_(min=0)


def random_perturbation(images: Images, norm: Norm, eps: float, generator: torch.Generator) -> Tensor:
    """A perturbation drawn uniformly from the eps ball for each image, on the images' device."""
    shape, device = images.shape, generator.device
    match norm:
        case "inf":
            drawn = torch.rand(shape, generator=generator, device=device).mul_(2 * eps).sub_(eps)
        case "2":
            direction = torch.randn(shape, generator=generator, device=device)
            share = torch.rand(len(images), 1, 1, 1, generator=generator, device=device)
            radius = share.pow_(1 / max(1, images[:1].numel()))
            drawn = direction.mul_(eps * radius / _positive(_length(direction)))
        case "1":
            drawn = _uniform_l1(images.flatten(1).shape, generator).mul_(eps).view(shape)
    return drawn.to(images.device, non_blocking=True)


def _uniform_l1(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """[N, D] in the unit L1 ball: D of D + 1 exponentials over their sum fill a simplex evenly; signs do the rest."""
    count, size = shape
    parts = torch.empty(count, size + 1, device=generator.device).exponential_(generator=generator)
    signs = torch.randint(0, 2, shape, generator=generator, device=generator.device).mul_(2).sub_(1)
    return parts[:, :size] / parts.sum(1, keepdim=True) * signs


def _length(images: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
    return length


def _positive(scale: Tensor) -> Tensor:
    return scale.clamp(min=torch.finfo(scale.dtype).tiny)
