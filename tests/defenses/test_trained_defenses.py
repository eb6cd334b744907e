from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from defenses.clean_retrain import CleanRetrain
from defenses.fine_tuning import FineTuning
from defenses.none import NoDefense
from defenses.perfect_filter import PerfectFilter
from defenses.pgd_training import PgdTraining
from defenses.random_filter import RandomFilter
from gauntlet import randomness
from gauntlet.architecture import Architecture
from gauntlet.defense import Reference, require_reserve
from gauntlet.errors import NotApplicableError, SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import ImageSet, to_float
from gauntlet.maths.adversarial import Adversarial
from gauntlet.maths.pgd import pgd
from gauntlet.network import Network
from gauntlet.objective import Objective
from gauntlet.recipe import Recipe
from gauntlet.training import fit
from gauntlet.views import DefenderView, Draws, OracleView

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=4, batch_size=64, learning_rate=0.01, precision="fp32")


@dataclass(frozen=True)
class Dense(Architecture):
    """One hidden layer: enough for 8x8 digits."""

    feature_layer: ClassVar[str] = "2"
    last_conv: ClassVar[str | None] = None

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 64), nn.ReLU(), nn.Linear(64, classes)
        )


@dataclass
class Tools:
    """The engine's training without its store; keeps what each training was asked for."""

    seed: int
    trainings: list[tuple[ImageSet, tuple[str, ...], dict[str, Any]]] = field(default_factory=list)

    def new_network(self, architecture: str = "") -> Network:
        with randomness.seeded(self.seed, "initialisation"):
            return Network(Dense().build((1, 8, 8), 10), [0.3], [0.4], "2", None)

    def train(
        self,
        images: ImageSet,
        *purpose: str,
        recipe: Recipe | None = None,
        objective: Objective | None = None,
        network: Network | None = None,
        architecture: str = "",
        shared: bool = False,
    ) -> Network:
        asked = {"recipe": recipe, "objective": objective, "network": network, "shared": shared}
        self.trainings.append((images, purpose, asked))
        trained = network or self.new_network()
        fit(trained, images, recipe or RECIPE, seed=self.seed, purpose=purpose, device=CPU, objective=objective)
        return trained


def digits(part: slice) -> ImageSet:
    data = load_digits()
    images = torch.tensor(data.images * 15, dtype=torch.uint8)[:, None][part]
    return ImageSet.of(images, torch.tensor(data.target)[part])


CLEAN, RESERVE, HELD_OUT = digits(slice(0, 1000)), digits(slice(1000, 1200)), digits(slice(1200, None))


def accuracy(network: Network, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


def held_out_accuracy(network: Network) -> float:
    return accuracy(network, to_float(HELD_OUT.images()), HELD_OUT.labels)


def poison(share: float) -> tuple[ImageSet, Tensor]:
    """A white corner and the label 0 on a share of the clean set, and which samples those are."""
    poisoned = torch.zeros(len(CLEAN), dtype=torch.bool)
    poisoned[torch.randperm(len(CLEAN), generator=torch.Generator().manual_seed(3))[: int(share * len(CLEAN))]] = True
    images, labels = CLEAN.images(), CLEAN.labels.clone()
    images[poisoned, :, -2:, -2:] = 255
    labels[poisoned] = 0
    return ImageSet.of(images, labels), poisoned


@pytest.fixture
def oracle() -> OracleView:
    delivered, poisoned = poison(0.2)
    facts = TaskFacts("mini", (1, 8, 8), tuple("0123456789"), (100,) * 10, (20,) * 10, (59,) * 10, "", "")
    tools = Tools(seed=5)
    return OracleView(
        facts=facts,
        architecture=Dense(),
        recipe=RECIPE,
        draws=Draws(5),
        device=CPU,
        tools=tools,
        victim=tools.new_network().eval(),
        reserve=RESERVE,
        deliver=lambda: delivered,
        represent=lambda images: images.images().flatten(1).float(),
        clean_training=CLEAN,
        poisoned=poisoned,
    )


def defenders(view: OracleView) -> DefenderView:
    """The same case as a defense sees it, without what only reference columns may know."""
    shown = (
        "facts",
        "architecture",
        "recipe",
        "draws",
        "device",
        "tools",
        "victim",
        "reserve",
        "deliver",
        "represent",
    )
    return DefenderView(**{name: vars(view)[name] for name in shown})


def asked(view: DefenderView) -> tuple[ImageSet, tuple[str, ...], dict[str, Any]]:
    assert isinstance(view.tools, Tools)
    (training,) = view.tools.trainings
    return training


def test_no_defense_hands_over_the_very_victim(oracle: OracleView) -> None:
    assert NoDefense().rebuild(oracle) is oracle.victim
    assert oracle.tools.trainings == []  # type: ignore[attr-defined]


def test_clean_retrain_learns_the_clean_data(oracle: OracleView) -> None:
    network = CleanRetrain().rebuild(oracle)
    images, purpose, settings = asked(oracle)

    assert images is CLEAN
    assert purpose == ("training",)
    assert settings == {"recipe": None, "objective": None, "network": None, "shared": True}
    assert held_out_accuracy(network) > 0.85


def test_the_perfect_filter_keeps_exactly_the_unpoisoned(oracle: OracleView) -> None:
    assert oracle.poisoned is not None
    PerfectFilter().rebuild(oracle)
    images, purpose, settings = asked(oracle)

    assert torch.equal(images.images(), oracle.training.images()[~oracle.poisoned])
    assert torch.equal(images.images(), CLEAN.images()[~oracle.poisoned])
    assert (purpose, settings["shared"]) == (("training",), True)


def test_the_random_filter_removes_as_many_but_blindly(oracle: OracleView) -> None:
    assert oracle.poisoned is not None
    RandomFilter().rebuild(oracle)
    images, purpose, settings = asked(oracle)
    kept = images.rows

    assert len(images) == 800
    assert torch.equal(kept, kept.sort().values)
    assert len(set(kept.tolist())) == 800
    assert int(oracle.poisoned[kept].sum()) == pytest.approx(160, abs=25)
    assert (purpose, settings["shared"]) == (("training",), True)


def test_the_random_filter_follows_the_seed(oracle: OracleView) -> None:
    def kept(seed: int) -> Tensor:
        view = replace(oracle, draws=Draws(seed), tools=Tools(seed))
        RandomFilter().rebuild(view)
        return asked(view)[0].rows

    assert torch.equal(kept(1), kept(1))
    assert not torch.equal(kept(1), kept(2))


@pytest.mark.parametrize("reference", [PerfectFilter(), RandomFilter()], ids=repr)
def test_without_poison_a_filter_is_training_on_what_was_delivered(oracle: OracleView, reference: Reference) -> None:
    view = replace(oracle, poisoned=torch.zeros(1000, dtype=torch.bool))
    reference.rebuild(view)

    assert asked(view)[0].digest() == view.training.digest()


@pytest.mark.parametrize("reference", [PerfectFilter(), RandomFilter()], ids=repr)
def test_where_there_is_nothing_to_filter_the_reason_is_given(oracle: OracleView, reference: Reference) -> None:
    with pytest.raises(NotApplicableError, match="no training set"):
        reference.rebuild(replace(oracle, deliver=None, poisoned=None))
    with pytest.raises(NotApplicableError, match="doesn't say which"):
        reference.rebuild(replace(oracle, poisoned=None))
    with pytest.raises(NotApplicableError, match="every delivered sample is poisoned"):
        reference.rebuild(replace(oracle, poisoned=torch.ones(1000, dtype=torch.bool)))


def test_fine_tuning_trains_the_victim_on_the_reserve_alone(oracle: OracleView) -> None:
    view = replace(
        defenders(oracle), recipe=replace(RECIPE, augmentation=("crop",), crop_padding=1, crop_fill="reflect")
    )
    before = deepcopy(view.victim)
    network = FineTuning(epochs=30, batch_size=32).repair(view)
    images, purpose, settings = asked(view)

    assert images is RESERVE
    assert purpose == ("fine_tuning",)
    assert network is view.victim
    assert not settings["shared"]
    assert settings["recipe"] == Recipe(
        epochs=30,
        batch_size=32,
        optimizer="sgd",
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        augmentation=("crop",),
        crop_padding=1,
        crop_fill="reflect",
        precision="fp32",
    )
    assert held_out_accuracy(network) > held_out_accuracy(before) + 0.3


def test_fine_tuning_by_the_fields_settings_and_only_with_a_reserve() -> None:
    assert (FineTuning().learning_rate, FineTuning().batch_size) == (0.01, 256)
    require_reserve(FineTuning(), "fine_tuning", 1)
    with pytest.raises(SettingError, match="fine_tuning needs a clean reserve"):
        require_reserve(FineTuning(), "fine_tuning", 0)


def test_pgd_training_asks_for_the_demos_adversary(oracle: OracleView) -> None:
    view = defenders(oracle)
    PgdTraining().train(view)
    images, purpose, settings = asked(view)

    assert images is view.training
    assert purpose == ("training",)
    assert settings["objective"] == Adversarial("inf", eps=0.15, step=0.001, iterations=7, random_start=True)
    assert settings["shared"]


def test_pgd_training_without_a_training_set_is_not_applicable(oracle: OracleView) -> None:
    with pytest.raises(NotApplicableError, match="no training set"):
        PgdTraining().train(replace(defenders(oracle), deliver=None))


def test_pgd_training_withstands_the_attack_that_it_learnt(oracle: OracleView) -> None:
    view = replace(defenders(oracle), deliver=lambda: CLEAN)
    robust, plain = PgdTraining(eps=0.1, step=0.025).train(view), CleanRetrain().rebuild(oracle)
    images, labels = to_float(HELD_OUT.images()), HELD_OUT.labels

    def attacked(network: Network) -> float:
        changed = pgd(
            network,
            images,
            labels,
            norm="inf",
            eps=0.1,
            step=0.025,
            iterations=10,
            generator=torch.Generator().manual_seed(0),
            random_start=True,
        )
        return accuracy(network, changed, labels)

    assert held_out_accuracy(robust) > 0.75
    assert attacked(robust) > attacked(plain) + 0.1
