"""What a player hands back is checked, and only what the store keeps of it is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attacks.badnets import BadNets
from gauntlet.attack import Mounted
from gauntlet.defending import Defended, defend
from gauntlet.defense import (
    Aggregation,
    Defense,
    Filter,
    Inspection,
    InTraining,
    ModelVerdict,
    Preprocessing,
    Repair,
    Stage,
)
from gauntlet.errors import GauntletError
from gauntlet.images import ImageSet
from gauntlet.keys import key
from gauntlet.mounting import mount, victim_spec
from gauntlet.network import Network
from gauntlet.options import Options
from gauntlet.pipeline import Context, tools_for
from gauntlet.recipe import Recipe
from gauntlet.records import Status
from gauntlet.session import open_session
from gauntlet.views import AttackerView, DefenderView
from tests.sample_cases import CaseMaker

Answer = Callable[[Any], Any]
SHORT = Recipe(epochs=1, batch_size=64, learning_rate=3e-3)


def hooked(view: DefenderView) -> Network:
    view.victim.register_forward_hook(lambda _module, _given, logits: -logits)
    return view.victim


def other_activation(view: DefenderView) -> Network:
    for module in list(view.victim.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(0.5))
    return view.victim


def longer(view: DefenderView) -> Network:
    view.victim.body = nn.Sequential(view.victim.body, nn.Hardtanh())
    return view.victim


def spoilt(view: DefenderView) -> Network:
    next(view.victim.parameters()).data.view(-1)[0] = float("nan")
    return view.victim


def noisy(view: DefenderView) -> Network:
    with torch.no_grad():
        for parameter in view.victim.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return view.victim


def black(view: DefenderView) -> Network:
    images = view.reserve.images().float() / 255
    return view.tools.train(ImageSet.of(images, view.reserve.labels), "repair", network=view.victim)


REPAIRS: dict[str, tuple[Answer, str]] = {
    "hook": (hooked, "changed the network's structure; only its weights are kept"),
    "activation": (other_activation, "changed the network's structure; only its weights are kept"),
    "layers": (longer, "changed the network's structure: body.*; only its weights are kept"),
    "half": (lambda view: view.victim.half(), "is float16 .*, due is float32"),
    "part": (lambda view: view.victim.body, "'s repair gave Sequential; due: Network"),
    "nothing": (lambda _view: None, "'s repair gave None; due: Network"),
    "not a number": (spoilt, "left weights that are not finite: body"),
    "floats": (black, r"float32 \[100, 1, 28, 28\] for images; due: uint8"),
    "another": (lambda view: view.tools.new_network("le_net"), "legal: the case's own; .* a defense has none"),
}


@dataclass(frozen=True)
class Repairing(Repair):
    """Hands back whatever the test asks for."""

    which: str = ""

    def repair(self, view: DefenderView) -> Network:
        return KEPT[self.which](view) if self.which in KEPT else REPAIRS[self.which][0](view)  # type: ignore[no-any-return]


KEPT: dict[str, Answer] = {"noise": noisy, "training mode": lambda view: view.victim.train()}


def defended(
    defense: Defense, context: Context, make_case: CaseMaker, attack: str = "badnets", **given: Any
) -> Defended:
    case = replace(make_case(attack, "fine_tuning", recipe=SHORT, **given), defense=defense)
    tools = tools_for(case, 0, context)
    return defend(
        defense, case.attack, mount(case.attack, tools), key(victim_spec(case.attack, tools)), 100, tools
    ).value


@pytest.mark.parametrize("which", REPAIRS)
def test_a_repair_that_weights_cant_hold_is_refused(which: str, context: Context, make_case: CaseMaker) -> None:
    with pytest.raises(GauntletError, match=REPAIRS[which][1]):
        defended(Repairing(which), context, make_case)


def test_a_network_handed_back_in_training_mode_is_scored_as_the_store_gives_it(
    context: Context, make_case: CaseMaker
) -> None:
    made, read = (defended(Repairing("training mode"), context, make_case).network for _ in range(2))
    images = torch.rand(40, 1, 28, 28)
    assert not made.training
    assert torch.equal(made(images), read(images))


def test_what_a_defense_draws_from_torch_itself_is_the_same_in_every_run(
    context: Context, make_case: CaseMaker
) -> None:
    before = torch.get_rng_state()
    anew = replace(context, recompute=True)
    one, other = (defended(Repairing("noise"), anew, make_case).network.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), before)


class Trained(InTraining):
    def train(self, view: DefenderView) -> Any: ...


class Listing(Filter):
    def keep(self, view: DefenderView) -> Any:
        return [True] * len(view.training)


class InNumpy(Filter):
    def keep(self, view: DefenderView) -> Any:
        return view.training.labels.numpy() > 0


class Sure(ModelVerdict):
    def inspect(self, view: DefenderView) -> Any:
        return True


class Vague(ModelVerdict):
    def inspect(self, view: DefenderView) -> Inspection:
        return Inspection([0.0] * view.facts.classes, ())  # type: ignore[arg-type]


class Single(ModelVerdict):
    def inspect(self, view: DefenderView) -> Inspection:
        return Inspection(torch.zeros(view.facts.classes), 3)  # type: ignore[arg-type]


class Fitted(Preprocessing):
    def transform_training(self, training: ImageSet, generator: torch.Generator) -> Any: ...


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (Trained(), "test_turns's train gave None; due: Network"),
        (Listing(), "test_turns's keep gave list; due: a bool tensor"),
        (InNumpy(), "test_turns's keep gave ndarray; due: a bool tensor"),
        (Sure(), "test_turns's inspect gave bool; due: Inspection"),
        (Vague(), "`anomaly` gave list; due: a finite float tensor"),
        (Single(), "`suspects` gave int; due: a tuple of classes"),
        (Fitted(apply_fit=True), "test_turns's transform_training gave None; due: ImageSet"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, Defense) else "",
)
def test_an_answer_of_the_wrong_kind_is_named(
    defense: Defense, message: str, context: Context, make_case: CaseMaker
) -> None:
    with pytest.raises(GauntletError, match=message):
        defended(defense, context, make_case)


@dataclass(frozen=True)
class Stepping(Aggregation):
    """The server of no use."""

    def aggregate(self, updates: Any, rate: float, generator: torch.Generator) -> Any:
        return updates


def test_a_step_of_the_wrong_shape_is_named(context: Context, make_case: CaseMaker) -> None:
    small = {"users": 4, "sampled": 2, "rounds": 1, "local_epochs": 0.1}
    with pytest.raises(GauntletError, match=r"aggregate gave torch.float32 \[2, \d+\].*; due: a finite float32 tensor"):
        defended(Stepping(), context, make_case, "federated_none", attack_settings=small, model="shallow_net")


@pytest.mark.parametrize(
    ("base", "method"), [(Repair, "repair"), (Filter, "keep"), (InTraining, "train"), (ModelVerdict, "inspect")]
)
def test_a_method_that_is_missing_is_named(
    base: type[Defense], method: str, context: Context, make_case: CaseMaker
) -> None:
    forgetful = type("Forgetful", (base,), {"__module__": __name__})
    with pytest.raises(NotImplementedError, match=f"test_turns: the class Forgetful has no method {method}"):
        defended(forgetful(), context, make_case)


@dataclass(frozen=True)
class Mounting(BadNets):
    """Hands over whatever the test asks for."""

    which: str = ""

    def mount(self, view: AttackerView) -> Mounted:
        return MOUNTS[self.which][0](super().mount(view))  # type: ignore[no-any-return]


def attached(mounted: Mounted) -> Mounted:
    mounted.network.register_forward_hook(lambda _module, _given, logits: -logits)
    return mounted


MOUNTS: dict[str, tuple[Answer, str]] = {
    "network": (lambda mounted: mounted.network, "test_turns's mount gave Network; due: Mounted"),
    "hook": (attached, "test_turns's mount changed the network's structure; only its weights are kept"),
    "set": (lambda mounted: replace(mounted, training=None), "mount gave None; due: an ImageSet as `training`"),
    "mask": (lambda mounted: replace(mounted, poisoned=mounted.sources), "gave torch.int64 .* due: `poisoned` as bool"),
}


@pytest.mark.parametrize("which", MOUNTS)
def test_what_an_attack_hands_over_is_checked(which: str, context: Context, make_case: CaseMaker) -> None:
    case = replace(make_case("badnets", recipe=SHORT, model="shallow_net"), attack=Mounting(which=which))
    with pytest.raises(GauntletError, match=MOUNTS[which][1]):
        mount(case.attack, tools_for(case, 0, context))


LEAVING = """import sys
from dataclasses import dataclass
from gauntlet.defense import Repair
from gauntlet.plugin import defense


@defense
@dataclass(frozen=True)
class Leaving(Repair):
    '''Of this test.'''

    def repair(self, view):
        sys.exit(3)
"""
SUITE = """
tasks = ["digits"]
architectures = ["shallow_net"]
attacks = ["badnets"]
defenses = ["leaving", "none"]
seeds = [0]
reserve = 10
[recipe]
epochs = 1
"""


def test_a_plug_in_that_leaves_the_process_stops_its_own_case_alone(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING, encoding="utf-8")
    (tmp_path / "suite.toml").write_text(SUITE, encoding="utf-8")
    store, plugins = tmp_path / "store", (tmp_path / "leaving.py",)
    options = Options(suites=(str(tmp_path / "suite.toml"),), plugins=plugins, store=store, device="cpu")
    session = open_session(options, pytest.fail)
    found = {case.defense.stage: session.attempt(case)[0] for case in session.cases}
    assert found[Stage.REPAIR].status is Status.ERROR
    assert found[Stage.REPAIR].reason == "sys.exit(3) was called in the case; raise an exception instead"
    assert found[Stage.REFERENCE].status is Status.PASS
