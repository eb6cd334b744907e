"""Interrupted and resumed, a training ends in the bytes of one that nobody interrupted."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gauntlet.checkpoints
from gauntlet import entry
from gauntlet.artifacts import TensorsCodec
from gauntlet.checkpoints import KIND, Checkpoint
from gauntlet.course import Course, Facts
from gauntlet.images import ImageSet
from gauntlet.keys import key
from gauntlet.making import being_made
from gauntlet.network import Network
from gauntlet.objective import Batch, CrossEntropy, Objective
from gauntlet.pipeline import Context, run, steps, tools_for
from gauntlet.recipe import Recipe
from gauntlet.settings import build
from gauntlet.store import Store
from gauntlet.training import EpochLog, fit
from tests.sample_cases import CaseMaker

CPU = torch.device("cpu")
SIDE, CLASSES, COUNT = 10, 3, 96
VICTIM = key({"victim": 1})


@pytest.fixture(autouse=True)
def _at_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauntlet.checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(gauntlet.checkpoints, "_SHARE", 0.0)


class _PulledError(Exception):
    """The plug was pulled."""


class Pull:
    """A Progress that pulls the plug when an epoch is over; a whole number of epochs, or never."""

    def __init__(self, after: float | None = None) -> None:
        self.after = after
        self.seen: list[float] = []
        self.told: list[str] = []

    def step(self, text: str) -> None:
        self.told.append(text)

    def epoch(self, done: float, total: float, loss: float, rate: float) -> None:
        self.seen.append(done)
        if self.after is not None and done >= self.after:
            raise _PulledError


def network() -> Network:
    """Convolutions (4-D weights in channels_last), batch normalisation, dropout, dense layers, as le_net has them."""
    torch.manual_seed(0)
    body = OrderedDict(
        conv=nn.Conv2d(1, 8, 3),
        norm=nn.BatchNorm2d(8),
        relu=nn.ReLU(),
        second=nn.Conv2d(8, 8, 1),
        pool=nn.MaxPool2d(2),
        dropout=nn.Dropout(0.3),
        flatten=nn.Flatten(),
        dense=nn.Linear(8 * 16, 16),
        relu2=nn.ReLU(),
        output=nn.Linear(16, CLASSES),
    )
    return Network(nn.Sequential(body), [0.5], [0.5], "relu2", "second")


def images() -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(COUNT) % CLASSES
    pixels = torch.randint(0, 150, (COUNT, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    for label in range(CLASSES):
        pixels[labels == label, :, 3 * label : 3 * label + 2] += 80
    return ImageSet.of(pixels, labels)


class _Mean(nn.Module):
    loss: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("loss", torch.ones(()))


class Judged(Objective):
    """A judge that is trained along, with batch statistics and noise of its own, and a running mean of the losses."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        self.judge = nn.Sequential(nn.Linear(CLASSES, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))
        self.mean = _Mean()

    def modules(self) -> list[nn.Module]:
        return [self.judge, self.mean]

    def loss(self, network: Network, batch: Batch) -> Tensor:
        logits = network(batch.images)
        loss = nn.functional.cross_entropy(logits, batch.labels)
        self.mean.loss.mul_(0.9).add_(0.1 * loss.detach())
        noise = torch.rand(len(logits), generator=batch.generator)
        weighted: Tensor = loss * self.mean.loss + (self.judge(logits).squeeze(1) - noise).square().mean()
        return weighted


class Forgetful(CrossEntropy):
    """Remembers something that no checkpoint holds, and says so."""

    def resumable(self) -> bool:
        return False


Make = Callable[..., tuple[bytes, tuple[EpochLog, ...]]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, pytest.fail)


def trained(
    store: Store | None,
    progress: Pull,
    objective: Objective | None = None,
    *,
    victim: str = VICTIM,
    recompute: bool = False,
    **settings: Any,
) -> tuple[bytes, tuple[EpochLog, ...]]:
    """The bytes of network and objective after a training, within the making of an entry where there is a store."""
    objective = objective or CrossEntropy()
    model = network()
    recipe = build(Recipe, {"epochs": 6, "batch_size": 16, "precision": "fp32", **settings}, "recipe")

    def make() -> dict[str, Tensor]:
        checkpoint = None
        if store is not None:
            work = being_made()
            assert work is not None
            checkpoint = Checkpoint(store, work, {"recipe": repr(recipe)}, "a training", "cpu", recompute)
        log.extend(
            fit(
                model,
                images(),
                recipe,
                seed=0,
                purpose=("t",),
                device=CPU,
                objective=objective,
                progress=progress,
                checkpoint=checkpoint,
            )
        )
        return model.state_dict()

    log: list[EpochLog] = []
    if store is None:
        make()
    else:
        store.obtain("victim", victim, {}, TensorsCodec(), make, recompute=recompute)
    parts = [model, *objective.modules()]
    return b"".join(bytes_of(value) for part in parts for value in part.state_dict().values()), tuple(log)


def bytes_of(value: Tensor) -> bytes:
    return value.detach().contiguous().numpy().tobytes()


def kept(store: Store) -> list[Path]:
    return [folder for _, _, folder in store.folders([KIND])]


def interrupted(store: Store, after: float, *given: Any, **settings: Any) -> None:
    with pytest.raises(_PulledError):
        trained(store, Pull(after), *given, **settings)


# ------------------------------------------------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("after", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"optimizer": "sgd", "schedule": "cosine", "learning_rate": 0.1}, id="sgd with momentum, cosine"),
        pytest.param({"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1}, id="sgd without memory"),
        pytest.param({"optimizer": "adam", "schedule": "one_cycle"}, id="adam"),
        pytest.param({"optimizer": "amsgrad", "weight_decay": 0.01}, id="amsgrad"),
        pytest.param({"optimizer": "rmsprop"}, id="rmsprop"),
        pytest.param({"optimizer": "adagrad", "schedule": "multistep"}, id="adagrad"),
        pytest.param({"optimizer": "muon", "learning_rate": 0.02, "schedule": "linear"}, id="muon"),
        pytest.param({"augmentation": ("crop", "flip"), "crop_padding": 1}, id="augmentation"),
        pytest.param({"precision": "bf16"}, id="bf16"),
        pytest.param({"epochs": 4.5}, id="half an epoch"),
    ],
)
def test_a_resumed_training_ends_in_the_same_bytes(store: Store, settings: dict[str, Any], after: float) -> None:
    whole, log = trained(None, Pull(), **settings)
    interrupted(store, after, **settings)
    assert len(kept(store)) == 1
    going_on = Pull()
    resumed, resumed_log = trained(store, going_on, **settings)
    assert going_on.seen[0] == min(after + 1, settings.get("epochs", 6))
    assert f"goes on after epoch {after}" in going_on.told[0]
    assert resumed == whole
    assert [entry.loss for entry in resumed_log] == [entry.loss for entry in log]
    assert not kept(store)


def test_of_the_learning_rate_too(store: Store) -> None:
    """What the bytes above can't show: without the schedule's position they would differ."""
    first, _ = trained(None, Pull(), schedule="cosine", optimizer="sgd", epochs=6)
    other, _ = trained(None, Pull(), schedule="cosine", optimizer="sgd", epochs=7)
    assert first != other


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_modules_of_an_objective_go_on_too(store: Store, optimizer: str) -> None:
    whole, _ = trained(None, Pull(), Judged(), optimizer=optimizer)
    interrupted(store, 3, Judged(), optimizer=optimizer)
    resumed, _ = trained(store, Pull(), Judged(), optimizer=optimizer)
    assert resumed == whole


@pytest.mark.parametrize("after", [2, 10, 12])
def test_early_stopping_goes_on_with_its_best_and_its_patience(store: Store, after: int) -> None:
    settings: dict[str, Any] = {
        "validation_split": 0.25,
        "early_stopping": True,
        "patience": 4,
        "learning_rate": 0.01,
        "optimizer": "sgd",
        "epochs": 40,
    }
    whole, log = trained(None, Pull(), **settings)
    assert 12 < len(log) < 40, "the recipe must stop early, and after the last interruption, to mean anything"
    interrupted(store, after, **settings)
    resumed, resumed_log = trained(store, Pull(), **settings)
    assert resumed == whole
    assert [entry.validation_loss for entry in resumed_log] == [entry.validation_loss for entry in log]


def test_many_interruptions(store: Store) -> None:
    whole, _ = trained(None, Pull())
    for after in (1, 2, 5):
        interrupted(store, after)
    going_on = Pull()
    assert trained(store, going_on)[0] == whole
    assert going_on.seen == [6.0]


def test_interrupted_within_an_epoch_the_last_whole_one_counts(store: Store) -> None:
    class Stopping(CrossEntropy):
        def loss(self, network: Network, batch: Batch) -> Tensor:
            calls.append(1)
            if len(calls) == 21:
                raise KeyboardInterrupt
            return super().loss(network, batch)

    calls: list[int] = []
    whole, _ = trained(None, Pull())
    with pytest.raises(KeyboardInterrupt):
        trained(store, Pull(), Stopping())
    going_on = Pull()
    assert trained(store, going_on)[0] == whole
    assert going_on.seen[0] == 4


def test_interrupted_after_its_last_epoch_a_training_is_not_repeated(store: Store) -> None:
    whole, _ = trained(None, Pull())
    interrupted(store, 6)
    going_on = Pull()
    assert trained(store, going_on)[0] == whole
    assert going_on.seen == []


def test_a_split_batch_stays_split(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    adopted: list[int] = []
    adopt = Course.adopt

    def seen(course: Course, saved: Any) -> None:
        adopt(course, saved)
        adopted.append(course.accumulation.parts)

    def split(course: Course, seconds: float) -> Any:
        course.accumulation.parts = 2
        return saved(course, seconds)

    saved = Course.saved
    monkeypatch.setattr(Course, "saved", split)
    monkeypatch.setattr(Course, "adopt", seen)
    interrupted(store, 2)
    trained(store, Pull())
    assert adopted == [2]


# ------------------------------------------------------------------------------------------------- which training's own


def test_a_training_that_ends_leaves_no_checkpoint(store: Store) -> None:
    trained(store, Pull())
    assert not kept(store)
    assert [listed.kind for listed in store.entries()] == ["victim"]


def test_a_short_training_writes_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauntlet.checkpoints, "EVERY", 20.0)
    interrupted(store, 5)
    assert not kept(store)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"victim": key({"victim": 2})}, id="another victim"),
        pytest.param({"learning_rate": 0.01}, id="another recipe"),
        pytest.param({"recompute": True}, id="made before all was to be made anew"),
    ],
)
def test_a_checkpoint_of_another_training_is_never_used(store: Store, other: dict[str, Any]) -> None:
    settings = {name: value for name, value in other.items() if name == "learning_rate"}
    whole, _ = trained(None, Pull(), **settings)
    interrupted(store, 3)
    anew = Pull()
    later = Store(store.root, pytest.fail)
    assert trained(later, anew, **other)[0] == whole
    assert anew.seen[0] == 1


def test_two_trainings_of_one_value_keep_apart(store: Store) -> None:
    """Of one recipe, one purpose, one network: the first is over when the second is interrupted."""

    def both(progress: Pull) -> list[bytes]:
        found = []

        def make() -> dict[str, Tensor]:
            for count in (96, 48):
                model, work = network(), being_made()
                assert work is not None
                checkpoint = Checkpoint(store, work, {}, "a training", "cpu")
                subset = images().subset(torch.arange(count))
                recipe = Recipe(epochs=3, batch_size=16)
                given: dict[str, Any] = {"seed": 0, "purpose": ("t",), "device": CPU}
                fit(model, subset, recipe, progress=progress, checkpoint=checkpoint, **given)
                found.append(b"".join(map(bytes_of, model.state_dict().values())))
            return {}

        store.obtain("defended", VICTIM, {}, TensorsCodec(), make)
        return found

    class Fifth(Pull):
        def epoch(self, done: float, total: float, loss: float, rate: float) -> None:
            super().epoch(done, total, loss, rate)
            if len(self.seen) == 5:
                raise _PulledError

    with pytest.raises(_PulledError):
        both(Fifth())
    assert len(kept(store)) == 2
    going_on = Pull()
    resumed = both(going_on)
    assert going_on.seen == [3.0]
    assert not kept(store)
    store.discard("defended", VICTIM)
    assert resumed == both(Pull())


def test_the_seconds_before_the_interruption_count(store: Store) -> None:
    interrupted(store, 5)
    (folder,) = kept(store)
    before = Facts.model_validate_json((folder / "course.json").read_bytes()).seconds
    trained(store, Pull())
    found = store.glance("victim", VICTIM)
    assert found is not None
    assert 0 < before < found.seconds


# -------------------------------------------------------------------------------------------------------------- damage


def _cut(folder: Path) -> None:
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _flip(folder: Path) -> None:
    file = folder / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)


def _empty(folder: Path) -> None:
    (folder / "entry.json").write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _flip, _empty])
def test_a_damaged_checkpoint_is_set_aside_and_the_training_starts_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    warnings: list[str] = []
    store = Store(tmp_path, warnings.append)
    whole, _ = trained(None, Pull())
    interrupted(store, 3)
    (folder,) = kept(store)
    damage(folder)
    anew = Pull()
    assert trained(store, anew)[0] == whole
    assert anew.seen[0] == 1
    assert len(warnings) == 1
    assert f"{KIND}/{folder.name[:12]} is damaged" in warnings[0]
    assert "set aside in" in warnings[0]
    assert not kept(store)


BIAS = "network.body.dense.bias"
Change = Callable[[dict[str, Tensor], dict[str, Any]], object]
TAMPERED: dict[str, tuple[Change, str]] = {
    "a weight less": (lambda tensors, _: tensors.pop(BIAS), "not those of this training"),
    "another shape": (lambda tensors, _: tensors.update({BIAS: torch.zeros(3)}), "not those of this training"),
    "another type": (lambda tensors, _: tensors.update({BIAS: torch.zeros(16).int()}), "not those of this training"),
    "a state too many": (lambda tensors, _: tensors.update({"optimizer.99.step": torch.zeros(())}), "no parameter"),
    "a state of nothing": (lambda tensors, _: tensors.update({"optimizer.x.step": torch.zeros(())}), "no parameter"),
    "a state's shape": (lambda tensors, _: tensors.update({"optimizer.1.exp_avg": torch.zeros(3)}), "no parameter"),
    "no state": (lambda tensors, _: [tensors.pop(name) for name in list(tensors) if "optim" in name], "strides"),
    "half an epoch": (lambda _, facts: facts.update(done=7), "whole epochs"),
    "too many epochs": (lambda _, facts: facts.update(done=600), "whole epochs"),
    "no epoch": (lambda _, facts: facts.update(done=0), "done"),
    "no log": (lambda _, facts: facts.update(log=[]), "logged"),
    "overlapping": (lambda _, facts: facts["strides"].update({BIAS: [0]}), "strides"),
    "too many strides": (lambda _, facts: facts["strides"].update({BIAS: [1, 1]}), "strides"),
    "strides of nothing": (lambda _, facts: facts["strides"].update({"network.other": [1]}), "strides"),
    "an unknown fact": (lambda _, facts: facts.update(more=1), "more"),
}


def _tampered(store: Store, change: Change) -> None:
    """Change a checkpoint's content and make its checksums true again."""
    (folder,) = kept(store)
    file, plain = folder / "tensors.safetensors", folder / "course.json"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors, facts = load_file(file), json.loads(plain.read_text())
    change(tensors, facts)
    save_file(tensors, file, metadata)
    plain.write_text(json.dumps(facts))
    manifest = entry.read(folder, KIND, folder.name)
    payload = {name: found for name, found in entry.payload_of(folder).items() if name != entry.MANIFEST}
    entry.write(folder, manifest.model_copy(update={"files": payload}))


@pytest.mark.parametrize("tampering", TAMPERED)
def test_a_checkpoint_that_does_not_fit_is_set_aside(tmp_path: Path, tampering: str) -> None:
    change, reason = TAMPERED[tampering]
    warnings: list[str] = []
    store = Store(tmp_path, warnings.append)
    whole, _ = trained(None, Pull())
    interrupted(store, 3)
    _tampered(store, change)
    anew = Pull()
    assert trained(store, anew)[0] == whole
    assert anew.seen[0] == 1
    (warning,) = warnings
    assert reason in warning


def test_killed_between_two_checkpoints_the_later_counts_and_the_earlier_stands_in(tmp_path: Path) -> None:
    """A kill after the new one is there and before the old one goes leaves both."""
    warnings: list[str] = []
    store = Store(tmp_path, warnings.append)
    whole, _ = trained(None, Pull())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "discard", lambda *_given: None)
        interrupted(store, 2)
    assert len(kept(store)) == 2
    later = max(kept(store), key=lambda folder: (folder / "course.json").read_text().count("["))
    _cut(later)
    going_on = Pull()
    assert trained(store, going_on)[0] == whole
    assert going_on.seen[0] == 2
    assert len(warnings) == 1
    assert not kept(store)


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: Any) -> None:
        raise OSError(28, "No space left on device")

    warnings: list[str] = []
    store = Store(tmp_path, warnings.append)
    whole, _ = trained(None, Pull())
    monkeypatch.setattr(gauntlet.checkpoints._CourseCodec, "save", full)
    assert trained(store, Pull())[0] == whole
    assert len(warnings) == 1
    assert "No space left" in warnings[0]


# ------------------------------------------------------------------------------------------------------ in a whole case


@pytest.mark.parametrize(
    ("attack", "defense", "kind", "after"),
    [
        ("badnets", "none", "victim", 2),
        ("badnets", "fine_tuning", "defended", 2),
        ("adversarial_embedding", "none", "victim", 3),
        ("badnets", "perfect_filter", "training", 2),
        ("blind", "none", "victim", 2),
    ],
)
def test_a_case_goes_on(
    context: Context, make_case: CaseMaker, tmp_path: Path, attack: str, defense: str, kind: str, after: int
) -> None:
    recipe = Recipe(epochs=4, batch_size=128, augmentation=("crop",), crop_padding=1)
    settings = {"epochs": 4} if defense == "fine_tuning" else None
    case = make_case(attack, defense, model="le_net", recipe=recipe, defense_settings=settings)
    context.data(case)
    epochs = after if kind == "victim" else 4 + after

    class Stop(Pull):
        def epoch(self, done: float, total: float, loss: float, rate: float) -> None:
            super().epoch(done, total, loss, rate)
            if len(self.seen) == epochs:
                raise KeyboardInterrupt

    def within(folder: str, progress: Pull) -> Context:
        store = Store(tmp_path / folder, pytest.fail)
        return dataclasses.replace(context, store=store, datasets=dict(context.datasets), progress=progress)

    with pytest.raises(KeyboardInterrupt):
        run(case, within("one", Stop()))
    going_on, unbroken = within("one", Pull()), within("two", Pull())
    (folder,) = kept(going_on.store)
    assert f'"of": "{kind}"' in (folder / "entry.json").read_text()
    assert run(case, going_on).scores == run(case, unbroken).scores
    assert isinstance(going_on.progress, Pull)
    assert going_on.progress.seen[0] == after + 1
    for step in steps(case, going_on):
        if step.kind != "score":
            file = "tensors.safetensors"
            one, two = (each.store.folder(step.kind, step.key) / file for each in (going_on, unbroken))
            assert one.read_bytes() == two.read_bytes()
    assert not kept(going_on.store)


def test_an_objective_with_a_memory_of_its_own_keeps_none(context: Context, make_case: CaseMaker) -> None:
    case = make_case("none", model="shallow_net")
    store = Store(context.store.root.parent / "forgetful", pytest.fail)
    tools = tools_for(case, 0, dataclasses.replace(context, store=store, datasets=dict(context.datasets)))
    found: list[object] = []

    def make() -> dict[str, Tensor]:
        found.extend(tools._checkpoint(("t",), case.recipe, objective) for objective in (Forgetful(), CrossEntropy()))
        return {}

    store.obtain("victim", VICTIM, {}, TensorsCodec(), make)
    assert found[0] is None
    assert isinstance(found[1], Checkpoint)
    assert tools._checkpoint(("t",), case.recipe, CrossEntropy()) is None
