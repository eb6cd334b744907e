"""What an attack changes stays its own: the data, the test labels and the process that later cases share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from gauntlet.attack import Backdoor, Family, Mounted
from gauntlet.defense import Filter, Repair
from gauntlet.errors import GauntletError, WrittenError
from gauntlet.guard import Role
from gauntlet.images import Images
from gauntlet.labels import AllToOne, LabelMap
from gauntlet.network import Network
from gauntlet.patch import PatchTrigger
from gauntlet.pipeline import Context, run
from gauntlet.poisoning import Poisoning
from gauntlet.recipe import Recipe
from gauntlet.store import Store
from gauntlet.testsets import stamp
from gauntlet.turns import turn
from gauntlet.views import AttackerView, DefenderView, Draws
from tests.sample_cases import CaseMaker

SHORT = Recipe(epochs=1, batch_size=64, learning_rate=3e-3)


@dataclass(frozen=True)
class Patched(PatchTrigger, Poisoning):
    """A patch; what else it does is each test's."""

    family: ClassVar[Family] = Family.DIRTY_LABEL

    def trigger(self, images: Images) -> Images:
        return self.paint_patch(images)


@dataclass(frozen=True)
class WritesLabels(Patched):
    """Turns labels and rows of what it was given upside down before it poisons."""

    def mount(self, view: AttackerView) -> Mounted:
        view.training.labels[:200] = 3
        view.training.rows.copy_(view.training.rows.flip(0))
        return super().mount(view)


@dataclass(frozen=True)
class WritesImages(Patched):
    """Blackens images that all cases are trained on, past torch's own bookkeeping."""

    def mount(self, view: AttackerView) -> Mounted:
        view.training.base.numpy()[:200] = 0
        return super().mount(view)


@dataclass(frozen=True)
class MovesInPlace(LabelMap):
    """Moves each label by one, in the very tensor that it is given."""

    def apply(self, labels: Tensor, classes: int, auxiliary: Tensor | None = None) -> Tensor:
        return labels.add_(1).remainder_(classes)


@dataclass(frozen=True)
class WritesTestLabels(Patched):
    """Its label map works in place."""

    @property
    def label_map(self) -> LabelMap:
        return MovesInPlace()


@pytest.fixture
def own(context: Context, make_case: CaseMaker, tmp_path: Path) -> Context:
    """A context with the session's data, a memory and a store of its own."""
    context.data(make_case("none"))
    return dataclasses.replace(context, store=Store(tmp_path, pytest.fail), datasets={})


def test_an_attack_writes_into_labels_of_its_own(own: Context, make_case: CaseMaker) -> None:
    case = make_case("none", recipe=SHORT)
    before = own.data(case).training
    labels, rows = before.labels.clone(), before.rows.clone()
    run(dataclasses.replace(case, attack=WritesLabels()), own)
    after = own.data(case).training
    assert after is before
    assert torch.equal(after.labels, labels)
    assert torch.equal(after.rows, rows)


def test_an_attack_that_writes_into_the_images_is_refused_and_they_are_read_anew(
    own: Context, make_case: CaseMaker
) -> None:
    case = make_case("badnets", recipe=SHORT)
    due = own.data(case).training.base.clone()
    run(case, own)
    assert own.memory.size
    with pytest.raises(WrittenError, match="'s mount wrote into the clean training images, which every case shares"):
        run(dataclasses.replace(case, attack=WritesImages()), own)
    assert torch.equal(own.data(case).training.base, due)
    # Nor does a victim in memory hold them.
    assert not own.memory.size


def test_a_label_map_that_works_in_place_changes_no_score(own: Context, make_case: CaseMaker) -> None:
    case = make_case("badnets", recipe=SHORT)
    labels = own.data(case).test.open().labels.clone()
    found = run(dataclasses.replace(case, attack=WritesTestLabels()), own).scores[0]
    assert torch.equal(own.data(case).test.open().labels, labels)
    due = run(make_case("badnets", attack_settings={"mode": "all_to_all"}, recipe=SHORT), own).scores[0]
    assert found.clean == due.clean
    assert found.backdoors[0].asr == due.backdoors[0].asr


@dataclass(frozen=True)
class Relabelling(Filter):
    """Keeps every sample, and writes other labels and images into what it was delivered."""

    write: bool = True

    def keep(self, view: DefenderView) -> Tensor:
        training = view.training
        kept = torch.ones(len(training), dtype=torch.bool)
        if self.write:
            training.labels[training.labels == 0] = 1
            training.base.zero_()
        return kept


def test_a_filter_is_trained_again_on_what_was_delivered(own: Context, make_case: CaseMaker) -> None:
    case = make_case("badnets", "activation_clustering", recipe=SHORT)
    found, due = (run(dataclasses.replace(case, defense=Relabelling(write)), own).scores[0] for write in (True, False))
    assert (found.clean, found.backdoors[0].asr) == (due.clean, due.backdoors[0].asr)


def of_other_shape(_attack: Any, _view: AttackerView, _labels: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.int64)


def as_numbers(_attack: Any, labels: Tensor, _classes: int) -> Tensor:
    return torch.ones_like(labels)


@pytest.mark.parametrize(
    ("method", "answer", "complaint"),
    [
        ("poison_labels", of_other_shape, r"'s poison_labels gave int64 \[1\]; due: int64 \[\d+\]"),
        ("may_poison", as_numbers, r"'s may_poison gave int64 \[\d+\]; due: bool \[\d+\]"),
    ],
)
def test_wrong_answers_of_an_attack_are_refused(
    method: str,
    answer: Callable[..., Tensor],
    complaint: str,
    own: Context,
    make_case: CaseMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Patched, method, answer)
    with pytest.raises(GauntletError, match=complaint):
        run(dataclasses.replace(make_case("badnets", recipe=SHORT), attack=Patched()), own)


@dataclass(frozen=True)
class LooksAround(Patched):
    """Adds the mean of the images that come along."""

    def trigger(self, images: Images) -> Images:
        return (images + images.mean()).clamp(0, 1)


@dataclass(frozen=True)
class DrawsNoise(Patched):
    """Replaces an image by noise, drawn anew each time."""

    def trigger(self, images: Images) -> Images:
        return torch.rand_like(images)


@pytest.mark.parametrize("attack", [LooksAround(), DrawsNoise()], ids=lambda attack: type(attack).__name__)
def test_a_trigger_stamps_each_image_by_itself(attack: Patched, own: Context, make_case: CaseMaker) -> None:
    with pytest.raises(GauntletError, match="'s trigger stamps an image alone otherwise than among others"):
        run(dataclasses.replace(make_case("badnets", recipe=SHORT), attack=attack), own)


SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "kind of floats": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), torch.get_num_threads),
    "matrix products": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
    "determinism": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "anomalies": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "oneDNN": (lambda: setattr(torch.backends.mkldnn, "enabled", False), lambda: torch.backends.mkldnn.enabled),
    "cuDNN": (lambda: setattr(torch.backends.cudnn, "benchmark", True), lambda: torch.backends.cudnn.benchmark),
    "matrix products, by their newer name": (
        lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),  # type: ignore[attr-defined]
        lambda: torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
    ),
    "NumPy's errors": (lambda: np.seterr(all="ignore"), np.geterr),
}


@pytest.mark.parametrize("what", SWITCHES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_what_a_player_switches_is_switched_back(what: str) -> None:
    switch, ask = SWITCHES[what]
    before = ask()
    with turn(Role.DEFENDER, Draws(0), "answer"):
        switch()
        assert ask() != before
    assert ask() == before


@dataclass(frozen=True)
class Switching(Repair):
    """Leaves gradients off."""

    seen: list[bool] = field(default_factory=list, compare=False)

    def repair(self, view: DefenderView) -> Network:
        torch.set_grad_enabled(False)
        return view.victim


def test_a_trigger_switches_nothing_for_others() -> None:
    def darken(images: Images) -> Images:
        torch.set_grad_enabled(False)
        return images / 2

    assert stamp(Backdoor("backdoor", darken, AllToOne(0)), torch.full((3, 1, 4, 4), 8, dtype=torch.uint8)).eq(4).all()
    assert torch.is_grad_enabled()


def test_gradients_are_there_for_the_next_defense(own: Context, make_case: CaseMaker) -> None:
    case = make_case("badnets", "fine_tuning", recipe=SHORT)
    run(dataclasses.replace(case, defense=Switching()), own)
    assert run(case, own).scores[0].clean.n
