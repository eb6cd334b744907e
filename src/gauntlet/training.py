"""The training engine: the whole data set on the device as uint8, no loader between it and the network."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet import randomness
from gauntlet.augmentation import augment
from gauntlet.compute import deterministic
from gauntlet.errors import DivergedError, SettingError
from gauntlet.images import ImageSet, chunks, to_float
from gauntlet.network import Network
from gauntlet.objective import Batch, CrossEntropy, Objective
from gauntlet.precision import autocast, resolve
from gauntlet.progress import Progress, Silent
from gauntlet.recipe import Recipe

__all__ = ["EpochLog", "fit", "logits", "predict", "snapshot", "stratified_split"]

PREDICTED_AT_ONCE = {"cpu": 128, "cuda": 2048}
"""Images a pass: on a CPU, activations that outgrow the cache cost more than small batches (docs/benchmarks.md)."""

ABSURD_LOSS = 1e4
"""A mean loss beyond this is no training any more."""


@dataclass(frozen=True)
class EpochLog:
    """One epoch: mean training loss, images a second, validation loss (NaN without a validation split)."""

    epoch: float
    loss: float
    rate: float
    validation_loss: float


def stratified_split(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions (kept, held out) with `share` of every class held out, both sorted and disjoint."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for value in torch.unique(labels).tolist():
        members = (labels == value).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        held[members[order[: round(share * len(members))]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def fit(
    network: Network,
    images: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    purpose: tuple[str, ...],
    device: torch.device,
    objective: Objective | None = None,
    progress: Progress | None = None,
) -> tuple[EpochLog, ...]:
    """Train `network` in place on `images` and leave it in eval mode.

    Raises DivergedError when the loss becomes NaN, infinite or absurd. The last epoch's weights are kept; with
    recipe.early_stopping those with the best loss on the held-out share of `images` are restored.
    """
    kept, held = torch.arange(len(images)), torch.arange(0)
    if recipe.validation_split:
        labels = images.labels.cpu()
        kept, held = stratified_split(
            labels, recipe.validation_split, randomness.generator(seed, *purpose, "validation")
        )
    if not len(kept):
        raise SettingError(
            f"{' '.join(purpose)}: no image is left to train on of {len(images):,}; "
            f"validation_split = {recipe.validation_split:g} may be too large"
        )
    if recipe.validation_split and not len(held):
        raise SettingError(
            f"{' '.join(purpose)}: validation_split = {recipe.validation_split:g} of {len(images):,} images holds none "
            "out; legal: a share that is at least one image of a class"
        )
    images = images.to(device)
    if device.type == "cuda" and len(images.changed):
        # Looking up which images of a batch are changed would wait for the device at every step.
        images = images.materialised()
    run = _Run(
        network.place(device),
        images,
        recipe,
        objective or CrossEntropy(recipe.label_smoothing),
        kept.to(device),
        held.to(device),
        resolve(recipe, network, images.shape, device),
        device,
        progress or Silent(),
    )
    if recipe.compile:
        network.compile()
    with randomness.seeded(seed, *purpose, "dropout"), deterministic():
        log = _epochs(run, seed, purpose)
    network.eval()
    return log


@dataclass(frozen=True, eq=False)
class _Run:
    network: Network
    images: ImageSet
    recipe: Recipe
    objective: Objective
    kept: Tensor
    held: Tensor
    dtype: torch.dtype
    device: torch.device
    progress: Progress


def _epochs(run: _Run, seed: int, purpose: tuple[str, ...]) -> tuple[EpochLog, ...]:
    recipe = run.recipe
    per_epoch = math.ceil(len(run.kept) / recipe.batch_size)
    # Rounded first: 0.07 epochs of 100 batches are 7, and 7.000000000000001 in floating point.
    total = max(1, math.ceil(round(recipe.epochs * per_epoch, 6)))
    parameters = [*run.network.parameters()]
    for module in run.objective.modules():
        parameters += module.to(run.device).train().parameters()
    optimizer = _optimizer(recipe, [parameter for parameter in parameters if parameter.requires_grad])
    generator = randomness.generator(seed, *purpose, "batches")
    log: list[EpochLog] = []
    best, best_state, stale = math.inf, None, 0
    for start in range(0, total, per_epoch):
        begun = time.perf_counter()
        run.network.train()
        steps = range(start, min(start + per_epoch, total))
        order = run.kept[torch.randperm(len(run.kept), generator=generator).to(run.device)]
        loss = _epoch(run, optimizer, order, steps, total, generator)
        epoch = (steps.stop) / per_epoch
        _check(loss, epoch, purpose, recipe)
        rate = min(len(steps) * recipe.batch_size, len(run.kept)) / (time.perf_counter() - begun)
        validation = _validation_loss(run) if len(run.held) else math.nan
        log.append(EpochLog(epoch, loss, rate, validation))
        run.progress.epoch(epoch, recipe.epochs, loss, rate)
        if recipe.early_stopping:
            if validation < best - recipe.min_delta or best_state is None:
                best, stale = validation, 0
                best_state = snapshot(run.network)
            else:
                stale += 1
            if stale >= recipe.patience:
                break
    if best_state is not None:
        run.network.load_state_dict(best_state)
    return tuple(log)


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the network's state, which later steps don't change (trap T22)."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _epoch(
    run: _Run, optimizer: torch.optim.Optimizer, order: Tensor, steps: range, total: int, generator: torch.Generator
) -> float:
    """One pass over `order`; the mean loss is read once, at the end, so that no step waits for the device."""
    recipe = run.recipe
    losses = torch.zeros((), device=run.device)
    taken = 0
    for position, step in enumerate(steps):
        index = order[position * recipe.batch_size : (position + 1) * recipe.batch_size]
        # Batch normalisation has no variance to go by in a rest of one sample.
        if len(index) < min(2, recipe.batch_size, len(order)):
            continue
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _factor(recipe, step / total)
        images = to_float(augment(run.images.images(index), recipe, generator))
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(run.device, run.dtype):
            loss = run.objective.loss(run.network, Batch(images, run.images.labels[index], index, generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses += loss.detach()
        taken += 1
    return float(losses) / max(taken, 1)


def _factor(recipe: Recipe, progress: float) -> float:
    """The share of the learning rate at `progress` in [0, 1)."""
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if recipe.schedule == "one_cycle":
        warm = 0.3
        if progress < warm:
            return max(0.04, progress / warm)
        return (1 + math.cos(math.pi * (progress - warm) / (1 - warm))) / 2
    if recipe.schedule == "multistep":
        passed = sum(milestone <= progress for milestone in recipe.milestones)
        return float(recipe.gamma**passed)
    return 1.0


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, recipe.momentum, weight_decay=decay, fused=True)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, weight_decay=decay, momentum=0.0)
    return torch.optim.Adagrad(parameters, rate, weight_decay=decay)


def _check(loss: float, epoch: float, purpose: tuple[str, ...], recipe: Recipe) -> None:
    if not math.isfinite(loss) or abs(loss) > ABSURD_LOSS:
        raise DivergedError(
            f"{' '.join(purpose)} diverged by epoch {epoch:g}: the mean loss is {loss:g} with {recipe.optimizer} at "
            f"learning rate {recipe.learning_rate:g}; lower the learning rate or choose another schedule"
        )


def _validation_loss(run: _Run) -> float:
    run.network.eval()
    total = 0.0
    with torch.inference_mode():
        for part in chunks(len(run.held), PREDICTED_AT_ONCE[run.device.type]):
            index = run.held[part]
            output = run.network(to_float(run.images.images(index)))
            total += float(cross_entropy(output, run.images.labels[index], reduction="sum"))
    return total / len(run.held)


def logits(network: Network, images: Tensor, recipe: Recipe, device: torch.device) -> Tensor:
    """float32 [N, classes] on the CPU of uint8 images [N, C, H, W]; eval mode, the arithmetic of the recipe."""
    network.eval()
    channels, height, width = images.shape[1:]
    dtype = resolve(recipe, network, (channels, height, width), device)
    outputs = []
    with torch.inference_mode(), autocast(device, dtype):
        for part in chunks(len(images), PREDICTED_AT_ONCE[device.type]):
            batch = to_float(images[part].to(device)).contiguous(memory_format=torch.channels_last)
            outputs.append(network(batch).float().cpu())
    return torch.cat(outputs)


def predict(network: Network, images: Tensor, recipe: Recipe, device: torch.device) -> Tensor:
    """int64 [N] on the CPU: the class of each uint8 image."""
    return logits(network, images, recipe, device).argmax(1)
