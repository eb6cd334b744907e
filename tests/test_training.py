"""The training engine, step by step: what a step's length, order, data and end must be, from arithmetic done here."""

from __future__ import annotations

import copy
import itertools
import math
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

import gauntlet.precision
import gauntlet.training
from gauntlet.augmentation import alternating_flip, augment, crop, flip
from gauntlet.errors import DivergedError, SettingError
from gauntlet.images import ImageSet, to_float
from gauntlet.network import Network
from gauntlet.objective import Batch, CrossEntropy, Objective
from gauntlet.precision import describe_precision, flops_per_image, resolve
from gauntlet.recipe import Recipe
from gauntlet.settings import build
from gauntlet.training import EpochLog, features, fit, logits, predict, stratified_split

CPU = torch.device("cpu")
SIDE, CLASSES = 8, 3


def network(*, norm: bool = False, dropout: float = 0.0, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten(), dense=nn.Linear(SIDE * SIDE, 16))
    if norm:
        layers["norm"] = nn.BatchNorm1d(16)
    layers["relu"] = nn.ReLU()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["output"] = nn.Linear(16, CLASSES)
    return Network(nn.Sequential(layers), [0.5], [0.5], "relu", None)


def stripes(count: int, noise: int = 120) -> ImageSet:
    """Images whose bright rows tell their class, with noise."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(0, noise, (count, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    for label in range(CLASSES):
        images[labels == label, :, 2 * label : 2 * label + 2] += 100
    return ImageSet.of(images, labels)


def train(model: Network, images: ImageSet, seed: int = 0, objective: Objective | None = None, **settings: Any) -> Any:
    settings.setdefault("precision", "fp32")
    recipe = build(Recipe, settings, "recipe")
    return fit(model, images, recipe, seed=seed, purpose=("training",), device=CPU, objective=objective)


def state_bytes(model: nn.Module) -> bytes:
    return b"".join(value.contiguous().numpy().tobytes() for value in model.state_dict().values())


class Slope(Objective):
    """A loss whose gradient by one weight is always 1, so that each step shows the optimizer's rule bare."""

    def __init__(self) -> None:
        self.weight = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.weight.weight)
        self.values: list[float] = []
        self.positions: list[Tensor] = []

    def modules(self) -> list[nn.Module]:
        return [self.weight]

    def loss(self, network: Network, batch: Batch) -> Tensor:
        self.values.append(self.weight.weight.item())
        self.positions.append(batch.positions.clone())
        return self.weight.weight.sum()

    @property
    def moves(self) -> list[float]:
        """How far each step moved the weight down."""
        values = [*self.values, self.weight.weight.item()]
        return [before - after for before, after in itertools.pairwise(values)]


# ---------------------------------------------------------------------------------------------------- steps and epochs


@pytest.mark.parametrize(
    ("count", "batch_size", "epochs", "steps"),
    [
        (40, 10, 1, 4),
        (40, 10, 0.5, 2),
        (40, 10, 2.25, 9),
        (40, 10, 0.3, 2),
        (45, 10, 1, 5),
        (45, 10, 1.2, 6),
        (40, 10, 0.001, 1),
        (5, 100, 3, 3),
        pytest.param(200, 2, 0.07, 7, id="0.07 * 100 is a little above 7"),
        pytest.param(10, 1, 2, 20, id="batches of one"),
    ],
)
def test_fractional_epochs_count_steps_exactly(count: int, batch_size: int, epochs: float, steps: int) -> None:
    slope = Slope()
    log = train(network(), stripes(count), objective=slope, epochs=epochs, batch_size=batch_size)
    assert len(slope.values) == steps
    assert log[-1].epoch == pytest.approx(steps / math.ceil(count / batch_size))


def test_an_epoch_sees_every_image_once_and_shuffled_anew() -> None:
    slope = Slope()
    train(network(), stripes(45), objective=slope, epochs=2, batch_size=10)
    assert [len(batch) for batch in slope.positions] == [10, 10, 10, 10, 5] * 2
    first, second = torch.cat(slope.positions[:5]), torch.cat(slope.positions[5:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(45))
    assert first.tolist() != second.tolist()
    assert first.tolist() != list(range(45))


def test_the_batch_holds_the_images_and_labels_of_its_positions() -> None:
    class Checking(CrossEntropy):
        def loss(self, network: Network, batch: Batch) -> Tensor:
            assert torch.equal(batch.images, to_float(images.images(batch.positions)))
            assert torch.equal(batch.labels, images.labels[batch.positions])
            return super().loss(network, batch)

    images = stripes(20).replaced(torch.tensor([3, 7]), torch.zeros(2, 1, SIDE, SIDE).byte(), torch.tensor([2, 2]))
    train(network(), images, objective=Checking(), epochs=1, batch_size=6)


def test_a_last_batch_of_one_sample_is_left_out_for_batch_normalisation() -> None:
    slope = Slope()
    train(network(norm=True), stripes(9), objective=slope, epochs=1, batch_size=4)
    assert [len(batch) for batch in slope.positions] == [4, 4]
    train(network(norm=True), stripes(9), epochs=2, batch_size=4)


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (0, {}),
        (30, {"validation_split": 0.99}),
        pytest.param(30, {"validation_split": 0.01}),
        pytest.param(30, {"validation_split": 0.04}),
    ],
)
def test_nothing_to_train_on_or_to_validate_with_is_a_sentence(count: int, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"^training: "):
        train(network(), stripes(count), epochs=1, **settings)


# ------------------------------------------------------------------------------------------- optimizers and schedules


def sgd(step: int, rate: float) -> float:
    return rate * sum(0.9**past for past in range(step + 1))


def adam(step: int, rate: float) -> float:
    return rate


def adagrad(step: int, rate: float) -> float:
    return rate / math.sqrt(step + 1)


def rmsprop(step: int, rate: float) -> float:
    return rate / math.sqrt(1 - 0.99 ** (step + 1))


@pytest.mark.parametrize("rule", [sgd, adam, adagrad, rmsprop])
def test_each_optimizer_moves_as_its_rule_says(rule: Any) -> None:
    slope = Slope()
    settings: dict[str, Any] = {"optimizer": rule.__name__, "learning_rate": 0.01, "momentum": 0.9}
    train(network(), stripes(60), objective=slope, epochs=1, batch_size=10, **settings)
    assert slope.moves == pytest.approx([rule(step, 0.01) for step in range(6)], rel=1e-3)


def test_weight_decay_pulls_towards_zero() -> None:
    slope = Slope()
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.5}
    train(network(), stripes(20), objective=slope, epochs=1, batch_size=10, **settings)
    first = 0.1 * (1 + 0.5 * 1)
    assert slope.moves == pytest.approx([first, 0.1 * (1 + 0.5 * (1 - first))], rel=1e-4)


def test_muon_moves_hidden_weights_and_adam_the_rest() -> None:
    model, slope = network(norm=True), Slope()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    settings: dict[str, Any] = {"optimizer": "muon", "learning_rate": 0.5, "rest_rate": 0.01, "weight_decay": 0.1}
    train(model, stripes(60), objective=_Both(slope), epochs=1, batch_size=60, **settings)
    assert slope.moves == pytest.approx([0.01], rel=1e-3)
    moved = {name: value.detach() - before[name] for name, value in model.named_parameters()}
    change = moved["body.dense.weight"] + 0.5 * 0.1 * before["body.dense.weight"]
    values = torch.linalg.svdvals(change / 0.5)
    assert float(values.max()) < 1.25
    assert float(values.norm()) > 0.6
    for name in ("body.output.bias", "body.norm.weight", "body.output.weight"):
        assert float(moved[name].abs().max()) == pytest.approx(0.01, rel=0.1)


class _Both(CrossEntropy):
    """Cross-entropy, and the slope beside it."""

    def __init__(self, slope: Slope) -> None:
        super().__init__()
        object.__setattr__(self, "slope", slope)

    slope: Slope

    def modules(self) -> list[nn.Module]:
        return self.slope.modules()

    def loss(self, network: Network, batch: Batch) -> Tensor:
        return super().loss(network, batch) + self.slope.loss(network, batch)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad", "rmsprop", "muon"])
def test_each_optimizer_learns(optimizer: str) -> None:
    model, images = network(), stripes(120)
    rate = {"sgd": 0.1, "adagrad": 0.05, "muon": 0.05}.get(optimizer, 0.01)
    log = train(model, images, epochs=6, batch_size=20, optimizer=optimizer, learning_rate=rate)
    assert log[-1].loss < 0.5 * log[0].loss
    assert accuracy(model, images) > 0.95


def rates(**settings: Any) -> list[float]:
    """The learning rate of each of 20 steps in two epochs, in shares of the recipe's."""
    slope = Slope()
    plain: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.01}
    train(network(), stripes(100), objective=slope, epochs=2, batch_size=10, **plain, **settings)
    return [move / 0.01 for move in slope.moves]


def test_the_constant_schedule_is_constant() -> None:
    assert rates(schedule="constant") == pytest.approx([1.0] * 20, rel=1e-3)


def test_the_linear_schedule_falls_evenly() -> None:
    assert rates(schedule="linear") == pytest.approx([1 - step / 20 for step in range(20)], abs=1e-3)


def test_the_cosine_schedule_falls_over_all_steps() -> None:
    expected = [(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    assert rates(schedule="cosine") == pytest.approx(expected, abs=1e-3)


def test_the_one_cycle_schedule_climbs_and_falls() -> None:
    found = rates(schedule="one_cycle")
    peak = max(range(20), key=found.__getitem__)
    assert peak == 6
    assert found[peak] == pytest.approx(1, rel=1e-3)
    assert found[0] < 0.1
    assert found[-1] < 0.05
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_the_multistep_schedule_drops_at_its_milestones() -> None:
    expected = [1.0] * 10 + [0.1] * 5 + [0.01] * 5
    assert rates(schedule="multistep") == pytest.approx(expected, rel=1e-2)
    assert rates(schedule="multistep", milestones=(0.25,), gamma=0.5) == pytest.approx([1.0] * 5 + [0.5] * 15, rel=1e-3)


# ------------------------------------------------------------------------------------- validation and early stopping


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
)
def test_the_validation_split_is_stratified_and_disjoint(labels: list[int], share: float, seed: int) -> None:
    known = torch.tensor(labels)
    kept, held = stratified_split(known, share, torch.Generator().manual_seed(seed))
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    for label in set(labels):
        assert int((known[held] == label).sum()) == round(share * labels.count(label))


def test_held_out_images_are_never_trained_on() -> None:
    slope, images = Slope(), stripes(60)
    log = train(network(), images, objective=slope, epochs=5, batch_size=7, validation_split=0.25)
    seen = set(torch.cat(slope.positions).tolist())
    assert len(seen) == 45
    assert torch.bincount(images.labels[list(seen)]).tolist() == [15, 15, 15]
    assert all(math.isfinite(epoch.validation_loss) for epoch in log)


def test_the_validation_loss_is_the_mean_over_what_was_held_out() -> None:
    slope, images, model = Slope(), stripes(60), network()
    log = train(model, images, objective=slope, epochs=1, batch_size=9, validation_split=0.2)
    held = sorted(set(range(60)) - set(torch.cat(slope.positions).tolist()))
    with torch.no_grad():
        expected = cross_entropy(model(to_float(images.images(torch.tensor(held)))), images.labels[held])
    assert log[-1].validation_loss == pytest.approx(float(expected), rel=1e-5)


def stopped(monkeypatch: pytest.MonkeyPatch, losses: list[float], **settings: Any) -> tuple[int, float]:
    """Epochs run and the trained weight, in learning rates below its start, when validation yields `losses`."""
    script = iter(losses)
    monkeypatch.setattr(gauntlet.training, "_validation_loss", lambda _run: next(script))

    class InNetwork(CrossEntropy):
        def loss(self, network: Network, batch: Batch) -> Tensor:
            return network.get_parameter("body.output.bias")[0] * 1.0

    model = network()
    start = model.get_parameter("body.output.bias")[0].item()
    log = train(
        model,
        stripes(40),
        objective=InNetwork(),
        epochs=len(losses),
        batch_size=100,
        optimizer="sgd",
        momentum=0.0,
        learning_rate=0.01,
        validation_split=0.2,
        **settings,
    )
    return len(log), (start - model.get_parameter("body.output.bias")[0].item()) / 0.01


def test_early_stopping_waits_and_restores_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [1.0, 0.5, 0.6, 0.7, 0.1, 0.1]
    epochs, moved = stopped(monkeypatch, losses, early_stopping=True, patience=2)
    assert [epochs, moved] == pytest.approx([4, 2], rel=1e-3)
    epochs, moved = stopped(monkeypatch, losses, early_stopping=True, patience=3)
    assert [epochs, moved] == pytest.approx([6, 5], rel=1e-3)


def test_a_gain_below_min_delta_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [1.0, 0.95, 0.91, 0.2]
    epochs, moved = stopped(monkeypatch, losses, early_stopping=True, patience=2, min_delta=0.1)
    assert [epochs, moved] == pytest.approx([3, 1], rel=1e-3)


def test_without_early_stopping_the_last_epoch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs, moved = stopped(monkeypatch, [0.1, 0.5, 0.6])
    assert [epochs, moved] == pytest.approx([3, 3], rel=1e-3)


# ------------------------------------------------------------------------------------------------ divergence and seeds


def test_a_diverged_training_says_what_to_do() -> None:
    wanted = r"training diverged by epoch \d.*: the mean loss is .*sgd at learning rate 1e\+20; lower the learning rate"
    with pytest.raises(DivergedError, match=wanted):
        train(network(), stripes(40), epochs=3, batch_size=10, optimizer="sgd", learning_rate=1e20)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e9, -1e9])
def test_an_absurd_loss_is_a_divergence(loss: float) -> None:
    class Absurd(CrossEntropy):
        def loss(self, network: Network, batch: Batch) -> Tensor:
            return super().loss(network, batch) * 0 + loss

    with pytest.raises(DivergedError):
        train(network(), stripes(20), objective=Absurd(), epochs=1)


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0, -1.0])
@pytest.mark.parametrize("setting", ["epochs", "learning_rate", "gamma"])
def test_a_recipe_takes_finite_positive_numbers_only(setting: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"recipe: setting {setting} = "):
        build(Recipe, {setting: value}, "recipe")


def test_two_settings_that_contradict_each_other_are_named_without_a_place() -> None:
    with pytest.raises(SettingError, match=r"^recipe: early_stopping needs a validation_split"):
        build(Recipe, {"early_stopping": True}, "recipe")


def trained(seed: int = 0, purpose: str = "training", disturbance: int = 0, **settings: Any) -> bytes:
    model = network(norm=True, dropout=0.3)
    recipe = build(Recipe, {"epochs": 2, "batch_size": 16, "precision": "fp32"} | settings, "recipe")
    torch.manual_seed(disturbance)
    fit(model, stripes(50), recipe, seed=seed, purpose=(purpose,), device=CPU)
    return state_bytes(model)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bytes(precision: str) -> None:
    settings: dict[str, Any] = {"augmentation": ("crop", "flip"), "crop_padding": 1, "precision": precision}
    same = trained(**settings)
    assert trained(disturbance=7, **settings) == same
    assert trained(seed=1, **settings) != same
    assert trained(purpose="another", **settings) != same


def test_a_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = network(dropout=0.5)
    torch.manual_seed(5)
    train(model, stripes(40), epochs=1, batch_size=10)
    assert torch.equal(torch.rand(3), expected)


# ----------------------------------------------------------------------------------------------- precision and compile


def accuracy(model: Network, images: ImageSet) -> float:
    found = predict(model, images.images(), Recipe(precision="fp32"), CPU)
    return float((found == images.labels).float().mean())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_precisions_learn(precision: str) -> None:
    model, images = network(norm=True), stripes(120)
    train(model, images, epochs=6, batch_size=20, learning_rate=0.01, precision=precision)
    assert accuracy(model, images) > 0.95
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())


def test_the_loss_is_taken_in_full_precision_under_bf16() -> None:
    seen = []

    class Watching(CrossEntropy):
        def loss(self, network: Network, batch: Batch) -> Tensor:
            assert network(batch.images).dtype == torch.bfloat16
            seen.append(super().loss(network, batch).dtype)
            return super().loss(network, batch)

    train(network(), stripes(20), objective=Watching(), epochs=1, precision="bf16")
    assert set(seen) == {torch.float32}


def test_auto_takes_bf16_for_a_large_network_on_a_device_that_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    small, shape = network(), (1, SIDE, SIDE)
    assert flops_per_image(small, shape) == 2 * (64 * 16 + 16 * CLASSES)
    large = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10_000)), [0.5], [0.5], "1", None)
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(gauntlet.precision, "has_fast_bf16", lambda _device, fast=fast: fast)
        assert resolve(Recipe(), large, shape, CPU) == expected
        assert resolve(Recipe(), small, shape, CPU) == torch.float32
        assert resolve(Recipe(precision="bf16"), small, shape, CPU) == torch.bfloat16
        assert resolve(Recipe(precision="fp32"), large, shape, CPU) == torch.float32


def test_copies_of_a_network_share_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    original, shape = network(), (1, SIDE, SIDE)
    counted = flops_per_image(original, shape)
    copied = copy.deepcopy(original)
    monkeypatch.setattr(gauntlet.precision, "_counted", lambda *_: pytest.fail("counted again"))
    assert flops_per_image(copied, shape) == counted > 0


def test_the_header_can_say_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((True, "bf16 from 1 MFLOP an image"), (False, "fp32: this device multiplies no bf16 fast")):
        monkeypatch.setattr(gauntlet.precision, "has_fast_bf16", lambda _device, fast=fast: fast)
        assert describe_precision(CPU) == expected


@pytest.mark.parametrize("hidden", [7_811, 7_813, 10_000])
def test_weights_that_settle_the_precision_settle_it_as_a_forward_pass_does(
    hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauntlet.precision, "has_fast_bf16", lambda _device: True)
    model = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, hidden)), [0.5], [0.5], "1", None)
    expected = torch.bfloat16 if flops_per_image(model, (1, SIDE, SIDE)) >= 1e6 else torch.float32
    assert resolve(Recipe(), model, (1, SIDE, SIDE), CPU) == expected


def convolutional() -> Network:
    torch.manual_seed(0)
    layers = OrderedDict(
        conv=nn.Conv2d(1, 3, 3), norm=nn.BatchNorm2d(3), relu=nn.ReLU(), pool=nn.MaxPool2d(2), flatten=nn.Flatten()
    )
    return Network(nn.Sequential(layers | OrderedDict(output=nn.Linear(27, CLASSES))), [0.5], [0.5], "flatten", "conv")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("handed_over", [False, True], ids=["fresh", "in eval mode"])
def test_pools_before_relus_train_the_same_network(
    precision: str, handed_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> bytes:
        model = convolutional().train(not handed_over)
        train(model, stripes(40), epochs=2, batch_size=8, validation_split=0.2, precision=precision)
        assert not any("forward" in vars(layer) for layer in model.modules())
        return state_bytes(model)

    found = trained()
    monkeypatch.setattr(gauntlet.training, "pooling_early", lambda *_: nullcontext())
    assert found == trained()


def test_an_objective_reads_a_relu_in_its_place() -> None:
    seen: list[float] = []

    class Reading(CrossEntropy):
        def loss(self, network: Network, batch: Batch) -> Tensor:
            relu = network.body.get_submodule("relu")
            handle = relu.register_forward_hook(
                lambda _module, _inputs, output: seen.append(output.detach().min().item())
            )
            loss = super().loss(network, batch)
            handle.remove()
            return loss

    read, plain = convolutional(), convolutional()
    train(read, stripes(40), objective=Reading(), epochs=1, batch_size=8)
    train(plain, stripes(40), epochs=1, batch_size=8)
    assert min(seen) == 0
    assert state_bytes(read) == state_bytes(plain)


def test_a_compiled_training_equals_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamo's `eager` backend: generating machine code takes half a minute and is torch's own affair."""
    asked = []
    compile_it = nn.Module.compile

    def eagerly(self: nn.Module, **settings: Any) -> None:
        asked.append(self)
        compile_it(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", eagerly)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16, "validation_split": 0.2}
    plain, compiled = network(norm=True), network(norm=True)
    train(plain, stripes(40), **settings)
    train(compiled, stripes(40), compile=True, **settings)
    assert asked == [compiled]
    assert state_bytes(compiled) == state_bytes(plain)
    images = stripes(10)
    assert torch.equal(*(predict(model, images.images(), Recipe(), CPU) for model in (plain, compiled)))
    assert torch.equal(*(features(model, images, Recipe(), CPU) for model in (plain, compiled)))
    assert compiled.features_and_logits(to_float(images.images()))[0].shape == (10, 16)


# --------------------------------------------------------------------------------------------------------- augmentation


@given(count=st.integers(1, 6), height=st.integers(2, 6), width=st.integers(2, 6), padding=st.integers(1, 3))
def test_crop_equals_brute_force(count: int, height: int, width: int, padding: int) -> None:
    images = torch.arange(count * 2 * height * width).remainder(256).byte().view(count, 2, height, width)
    cropped = crop(images, padding, torch.Generator().manual_seed(count))
    drawn = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=torch.Generator().manual_seed(count))
    for index in range(count):
        top, left = int(drawn[0, index]), int(drawn[1, index])
        whole = pad(images[index], (padding,) * 4)
        assert torch.equal(cropped[index], whole[:, top : top + height, left : left + width])


@given(height=st.integers(1, 6), width=st.integers(1, 6), padding=st.integers(1, 9))
def test_what_a_crop_reflects_equals_numpy(height: int, width: int, padding: int) -> None:
    images = torch.arange(3 * 2 * height * width).remainder(251).byte().view(3, 2, height, width)
    cropped = crop(images, padding, torch.Generator().manual_seed(height), "reflect")
    drawn = torch.randint(0, 2 * padding + 1, (2, 3, 1), generator=torch.Generator().manual_seed(height))
    whole = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), *((padding, padding),) * 2), mode="reflect"))
    for index in range(3):
        top, left = int(drawn[0, index]), int(drawn[1, index])
        assert torch.equal(cropped[index], whole[index, :, top : top + height, left : left + width])


def test_crop_draws_every_shift_for_each_image_by_itself() -> None:
    dots = torch.zeros(400, 1, 5, 5, dtype=torch.uint8)
    dots[:, :, 2, 2] = 255
    places = crop(dots, 2, torch.Generator().manual_seed(0)).flatten(1).int().argmax(1)
    assert set(places.tolist()) == set(range(25))


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.arange(400 * 6).remainder(251).byte().view(400, 1, 2, 3)
    flipped = flip(images, torch.Generator().manual_seed(0))
    mirrored = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.5
    assert 150 < int(mirrored.sum()) < 250
    for index in range(400):
        rows = [row[::-1] if mirrored[index] else row for row in images[index, 0].tolist()]
        assert flipped[index, 0].tolist() == rows


def test_an_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    images = torch.arange(40 * 6).remainder(251).byte().view(40, 1, 2, 3)
    mirrored = torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.5
    first, second, third = (alternating_flip(images, mirrored, epoch) for epoch in range(3))
    for index in range(40):
        ways = (images[index], images[index].flip(-1))
        assert torch.equal(first[index], ways[int(mirrored[index])])
        assert torch.equal(second[index], ways[1 - int(mirrored[index])])
    assert torch.equal(third, first)


class Listening(Objective):
    """Plain cross-entropy that keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Batch] = []

    def loss(self, network: Network, batch: Batch) -> Tensor:
        self.shown.append(batch)
        return cross_entropy(network(batch.images), batch.labels)


def test_training_mirrors_each_image_in_every_other_epoch() -> None:
    images = stripes(30)
    objective = Listening()
    train(network(), images, 3, objective, epochs=4, batch_size=7, augmentation=["alternating_flip"])
    per_epoch = math.ceil(30 / 7)
    epochs = []
    for start in range(0, len(objective.shown), per_epoch):
        part = objective.shown[start : start + per_epoch]
        order = torch.cat([batch.positions for batch in part]).argsort()
        epochs.append(torch.cat([batch.images for batch in part])[order])
    assert len(epochs) == 4
    own = to_float(images.images())
    mirrored = (epochs[0] != own).flatten(1).any(1)
    assert 5 < int(mirrored.sum()) < 25
    for number, found in enumerate(epochs):
        turned = (mirrored ^ bool(number % 2)).view(-1, 1, 1, 1)
        assert torch.equal(found, torch.where(turned, own.flip(-1), own))


def test_the_recipe_chooses_the_augmentation() -> None:
    images = stripes(30).images()
    before = images.clone()
    for chosen in ((), ("flip",), ("crop",), ("crop", "flip")):
        recipe = Recipe(augmentation=chosen, crop_padding=2)
        found = augment(images, recipe, torch.Generator().manual_seed(0))
        assert (found.dtype, found.shape) == (torch.uint8, images.shape)
        assert torch.equal(found, images) is (not chosen)
    assert torch.equal(images, before)
    zeros, reflected = (
        augment(images, Recipe(augmentation=("crop",), crop_fill=fill), torch.Generator().manual_seed(0))
        for fill in ("zeros", "reflect")
    )
    assert not torch.equal(zeros, reflected)


def test_two_kinds_of_flips_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^recipe: augmentation names both flip and alternating_flip; legal: one"):
        build(Recipe, {"augmentation": ["flip", "alternating_flip"]}, "recipe")


# -------------------------------------------------------------------------------------- objectives, modes, predictions


def test_label_smoothing_is_the_recipes() -> None:
    images, model = stripes(30), network()
    with torch.no_grad():
        chances = model(to_float(images.images())).log_softmax(1)
    share = 0.2
    target = torch.full_like(chances, share / CLASSES).scatter_add_(
        1, images.labels[:, None], torch.full((30, 1), 1 - share)
    )
    log = train(model, images, epochs=1, batch_size=30, label_smoothing=share)
    assert log[0].loss == pytest.approx(float(-(target * chances).sum(1).mean()), rel=1e-5)


def test_a_training_ends_in_eval_mode_and_leaves_frozen_weights_alone() -> None:
    model = network(norm=True)
    frozen = model.get_parameter("body.dense.weight").requires_grad_(False)
    before = frozen.clone()
    train(model, stripes(40), epochs=1, batch_size=10, weight_decay=0.1)
    assert not any(module.training for module in model.modules())
    assert torch.equal(frozen, before)


def test_the_logits_do_not_depend_on_how_many_pass_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network(norm=True, dropout=0.5), stripes(23).images()
    whole = logits(model.train(), images, Recipe(precision="fp32"), CPU)
    monkeypatch.setitem(gauntlet.training.PREDICTED_AT_ONCE, "cpu", 4)
    parts = logits(model, images, Recipe(precision="fp32"), CPU)
    torch.testing.assert_close(whole, parts)
    with torch.no_grad():
        torch.testing.assert_close(whole, model.eval()(to_float(images)))
    assert torch.equal(predict(model, images, Recipe(precision="fp32"), CPU), whole.argmax(1))


def test_progress_hears_of_every_epoch() -> None:
    told: list[tuple[float, float]] = []

    class Listening:
        def step(self, text: str) -> None:
            raise AssertionError(text)

        def epoch(self, done: float, total: float, loss: float, rate: float) -> None:
            assert math.isfinite(loss)
            assert rate > 0
            told.append((done, total))

    recipe = Recipe(epochs=2.5, batch_size=10, precision="fp32")
    log = fit(network(), stripes(40), recipe, seed=0, purpose=("x",), device=CPU, progress=Listening())
    assert told == [(1, 2.5), (2, 2.5), (2.5, 2.5)]
    assert [type(epoch) for epoch in log] == [EpochLog] * 3
    assert all(math.isnan(epoch.validation_loss) for epoch in log)
