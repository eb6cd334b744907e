"""The training engine: the whole data set on the device as uint8, no loader between it and the network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet import randomness
from gauntlet.augmentation import augment
from gauntlet.checkpoints import Checkpoint
from gauntlet.compute import deterministic
from gauntlet.course import Course, EpochLog
from gauntlet.errors import DivergedError, SettingError
from gauntlet.first_norm import normalised_first
from gauntlet.images import ImageSet
from gauntlet.inference import as_it_is, inference, pooling_early
from gauntlet.layout import channels_last_gradients, to_batch
from gauntlet.network import Network
from gauntlet.objective import Batch, CrossEntropy, Objective
from gauntlet.optimizers import Optimizers
from gauntlet.out_of_memory import Accumulation, outputs
from gauntlet.precision import autocast, resolve
from gauntlet.progress import Progress, Silent
from gauntlet.recipe import Recipe
from gauntlet.recorder import Curves, Unseen, of_epoch

__all__ = ["EpochLog", "features", "fit", "logits", "predict", "snapshot", "stratified_split"]

PREDICTED_AT_ONCE = {"cpu": 128, "cuda": 2048}
"""Images a pass: on a CPU, activations that outgrow the cache cost more than small batches (docs/benchmarks.md)."""

ABSURD_LOSS = 1e4
"""A mean loss beyond this is no training any more."""


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
    checkpoint: Checkpoint | None = None,
    curves: Curves | None = None,
) -> tuple[EpochLog, ...]:
    """Train `network` in place on `images` and leave it in eval mode.

    Raises DivergedError when the loss becomes NaN, infinite or absurd. The last epoch's weights are kept; with
    recipe.early_stopping those with the best loss on the held-out share of `images` are restored. Batches that the
    device's memory doesn't hold are split (gauntlet.out_of_memory), and `progress` says so. With a checkpoint it goes
    on where an interrupted one stopped, and ends in the same bytes.
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
    if device.type == "cuda" and (len(images.changed) or len(images) < len(images.base)):
        # Looking up which images of a batch are changed would wait for the device at every step, and what isn't trained
        # on has no business there.
        images = images.materialised()
    run = _Run(
        network.place(device),
        images.to(device),
        recipe,
        objective or CrossEntropy(recipe.label_smoothing),
        kept.to(device),
        held.to(device),
        resolve(recipe, network, images.shape, device),
        device,
        progress or Silent(),
        checkpoint,
        curves or Unseen(),
        _mirrored(recipe, len(images), seed, purpose, device),
    )
    with randomness.seeded(seed, *purpose, "dropout"), deterministic(), _way(run):
        log = _epochs(run, seed, purpose)
    if recipe.compile:
        # A victim that was made now and one from the store are to be scored by the same kernels.
        network._compiled_call_impl = None
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
    checkpoint: Checkpoint | None
    curves: Curves
    mirrored: Tensor | None
    """bool [N]: which images an alternating flip mirrors first; None where the recipe has none."""


def _way(run: _Run) -> AbstractContextManager[None]:
    return _steadily() if run.recipe.compile else _shorter(run)


def _steadily() -> AbstractContextManager[None]:
    """Inside, the compiler chooses no kernel by a stopwatch, where the version of torch can do without."""
    from torch._inductor import config

    if not hasattr(config, "deterministic"):
        return nullcontext()
    steadily: AbstractContextManager[None] = config.patch(deterministic=True)
    return steadily


@contextmanager
def _shorter(run: _Run) -> Iterator[None]:
    """Inside, a step is shorter; its results are the same but for the rounding of a first layer."""
    # In training mode, in which a batch normalisation doesn't change places with a pool.
    run.network.train()
    with (
        channels_last_gradients(run.network),
        pooling_early(run.network, None, as_it_is),
        normalised_first(run.network),
    ):
        yield


def _compile(network: Network) -> None:
    # One graph a shape: one for several shapes would be that of a resumed training from another step on.
    network.compile(dynamic=False)


def _mirrored(recipe: Recipe, count: int, seed: int, purpose: tuple[str, ...], device: torch.device) -> Tensor | None:
    if "alternating_flip" not in recipe.augmentation:
        return None
    return torch.rand(count, generator=randomness.generator(seed, *purpose, "flips")).to(device) < 0.5


def _epochs(run: _Run, seed: int, purpose: tuple[str, ...]) -> tuple[EpochLog, ...]:
    recipe = run.recipe
    per_epoch = math.ceil(len(run.kept) / recipe.batch_size)
    # Rounded first: 0.07 epochs of 100 batches are 7, and 7.000000000000001 in floating point.
    total = max(1, math.ceil(round(recipe.epochs * per_epoch, 6)))
    parameters = [parameter for parameter in run.network.parameters() if parameter.requires_grad]
    modules = [module.to(run.device).train() for module in run.objective.modules()]
    further = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    optimizers = Optimizers(recipe, parameters, further)
    accumulation = Accumulation(lambda text: run.progress.step(f"{' '.join(purpose)}: {text}"))
    generator = randomness.generator(seed, *purpose, "batches")
    course = Course(run.network, modules, optimizers, accumulation, generator, run.device, total, per_epoch)
    if run.checkpoint is not None and run.checkpoint.resume(course):
        run.progress.step(f"{' '.join(purpose)}: goes on after epoch {course.log[-1].epoch:g}")
        if recipe.compile:
            _compile(run.network)
    for start in range(course.done, total, per_epoch):
        if recipe.early_stopping and course.stale >= recipe.patience:
            break
        begun = time.perf_counter()
        run.network.train()
        steps = range(start, min(start + per_epoch, total))
        order = run.kept[torch.randperm(len(run.kept), generator=generator).to(run.device)]
        loss = _epoch(run, optimizers, accumulation, order, steps, total, generator)
        epoch = steps.stop / per_epoch
        _check(loss, epoch, purpose, recipe)
        rate = min(len(steps) * recipe.batch_size, len(run.kept)) / (time.perf_counter() - begun)
        validation = _validation_loss(run) if len(run.held) else math.nan
        _note(run, course, steps.stop, EpochLog(epoch, loss, rate, validation))
    if course.best_state is not None:
        run.network.load_state_dict(course.best_state)
    return tuple(course.log)


def _note(run: _Run, course: Course, done: int, entry: EpochLog) -> None:
    """The end of an epoch: what early stopping makes of it, its checkpoint, its curves."""
    course.done = done
    course.log.append(entry)
    if run.recipe.early_stopping:
        if entry.validation_loss < course.best - run.recipe.min_delta or course.best_state is None:
            course.best, course.stale = entry.validation_loss, 0
            course.best_state = snapshot(run.network)
        else:
            course.stale += 1
    if run.checkpoint is not None:
        run.checkpoint.offer(course)
    reported = run.objective.reported()
    run.curves.write(done, of_epoch(entry.loss, entry.validation_loss, course.optimizers.rates, reported))
    run.progress.epoch(entry.epoch, run.recipe.epochs, entry.loss, entry.rate)


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the network's state, which later steps don't change (trap T22)."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _epoch(
    run: _Run,
    optimizers: Optimizers,
    accumulation: Accumulation,
    order: Tensor,
    steps: range,
    total: int,
    generator: torch.Generator,
) -> float:
    """One pass over `order`; the mean loss is read once, at the end, so that no step waits for the device."""
    size = run.recipe.batch_size
    losses = torch.zeros((), device=run.device)
    taken = 0
    epoch = steps.start // math.ceil(len(order) / size)
    for position, step in enumerate(steps):
        index = order[position * size : (position + 1) * size]
        # Batch normalisation has no variance to go by in a rest of one sample.
        if len(index) < min(2, size, len(order)):
            continue
        optimizers.schedule(step / total)
        losses += accumulation.backward(_mean_loss(run, index, epoch, generator), len(index), optimizers.clear)
        optimizers.step()
        if run.recipe.compile and step == 0:
            # What a network settles once, on its first batch, would make two graphs of one.
            _compile(run.network)
        taken += 1
    return float(losses) / max(taken, 1)


def _mean_loss(run: _Run, index: Tensor, epoch: int, generator: torch.Generator) -> Callable[[slice], Tensor]:
    """The loss of a part of the batch that holds the images at `index`."""
    mirrored = None if run.mirrored is None else run.mirrored[index]
    images = to_batch(augment(run.images.images(index), run.recipe, generator, mirrored, epoch))
    labels = run.images.labels[index]

    def of(part: slice) -> Tensor:
        with autocast(run.device, run.dtype):
            return run.objective.loss(run.network, Batch(images[part], labels[part], index[part], generator))

    return of


def _check(loss: float, epoch: float, purpose: tuple[str, ...], recipe: Recipe) -> None:
    if not math.isfinite(loss) or abs(loss) > ABSURD_LOSS:
        raise DivergedError(
            f"{' '.join(purpose)} diverged by epoch {epoch:g}: the mean loss is {loss:g} with {recipe.optimizer} at "
            f"learning rate {recipe.learning_rate:g}; lower the learning rate or choose another schedule"
        )


def _validation_loss(run: _Run) -> float:
    run.network.eval()

    def losses(part: slice) -> Tensor:
        index = run.held[part]
        return cross_entropy(
            run.network(to_batch(run.images.images(index))), run.images.labels[index], reduction="none"
        )

    with torch.inference_mode():
        found = outputs(len(run.held), PREDICTED_AT_ONCE[run.device.type], losses)
    return float(found.double().mean())


def logits(network: Network, images: Tensor, recipe: Recipe, device: torch.device) -> Tensor:
    """float32 [N, classes] on the CPU of uint8 images [N, C, H, W]; eval mode, the arithmetic of the recipe."""
    channels, height, width = images.shape[1:]
    network.eval()
    dtype = resolve(recipe, network, (channels, height, width), device)
    with inference(network, device, dtype):
        return outputs(
            len(images),
            PREDICTED_AT_ONCE[device.type],
            lambda part: network(to_batch(images[part].to(device))).float().cpu(),
        )


def features(network: Network, images: ImageSet, recipe: Recipe, device: torch.device) -> Tensor:
    """float32 [N, D] on the CPU: the network's representation of each image, in the arithmetic of the recipe."""
    network.eval()
    dtype = resolve(recipe, network, images.shape, device)
    with inference(network, device, dtype):
        return outputs(
            len(images),
            PREDICTED_AT_ONCE[device.type],
            lambda part: network.features_and_logits(to_batch(images.images(part).to(device)))[0].float().cpu(),
        )


def predict(network: Network, images: Tensor, recipe: Recipe, device: torch.device) -> Tensor:
    """int64 [N] on the CPU: the class of each uint8 image."""
    return logits(network, images, recipe, device).argmax(1)
