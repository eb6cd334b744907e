"""Cases from end to end on the embedded task, and what each key depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

import gauntlet.toolbox
from gauntlet.case import Case
from gauntlet.defending import defender_view
from gauntlet.errors import NotApplicableError
from gauntlet.fingerprint import fingerprint
from gauntlet.mounting import attacker_view, mount
from gauntlet.network import Network
from gauntlet.pipeline import Context, run, steps, tools_for, victim_key
from gauntlet.plugin import Kind
from gauntlet.recipe import Recipe
from gauntlet.registry import Registry
from gauntlet.scoring import PREDICTIONS
from gauntlet.store import Store
from gauntlet.training import fit
from tests.sample_cases import CaseMaker

SHORT = Recipe(epochs=1, batch_size=64, learning_rate=3e-3)
NAMES = ("victim", "undefended", "defended", "score")
ALL = set(NAMES)


@pytest.fixture
def own(context: Context, make_case: CaseMaker, tmp_path: Path) -> Context:
    """The session's context with an empty store."""
    context.data(make_case("none"))
    return dataclasses.replace(context, store=Store(tmp_path, _fail), datasets=dict(context.datasets))


def _fail(warning: str) -> None:
    raise AssertionError(warning)


Trainings = list[tuple[tuple[str, ...], dict[str, Tensor]]]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """Purpose and initial weights of every training that runs."""
    seen: Trainings = []

    def recording(network: Network, *given: Any, **settings: Any) -> Any:
        initial = {name: value.detach().clone() for name, value in network.state_dict().items()}
        seen.append((settings["purpose"], initial))
        return fit(network, *given, **settings)

    monkeypatch.setattr(gauntlet.toolbox, "fit", recording)
    return seen


def keys(case: Case, context: Context) -> dict[str, str]:
    """The keys of a one-seed case by the names of its steps."""
    return dict(zip(NAMES, (step.key for step in steps(case, context)), strict=True))


def differing(one: Case, two: Case, context: Context, other: Context | None = None) -> set[str]:
    first, second = keys(one, context), keys(two, other or context)
    return {name for name in NAMES if first[name] != second[name]}


# ------------------------------------------------------------------------------------------------------- a whole case


def test_a_case_from_end_to_end_and_once_more_from_the_store(own: Context, make_case: CaseMaker) -> None:
    case = make_case("badnets", "fine_tuning", model="shallow_net", recipe=SHORT, seeds=(0, 1))
    first, second = run(case, own), run(case, own)
    assert second.scores == first.scores
    assert [cost.cached for cost in first.costs] == [False] * 8
    assert [cost.cached for cost in second.costs] == [True] * 8
    assert [cost.seconds for cost in second.costs] == [cost.seconds for cost in first.costs]
    assert [score.seed for score in first.scores] == [0, 1]
    assert first.scores[0].clean != first.scores[1].clean
    for step in steps(case, own):
        assert own.store.contains(step.kind, step.key)


def test_a_store_of_another_day_yields_the_same_scores(
    own: Context, make_case: CaseMaker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = make_case("badnets", "jpeg_compression", model="shallow_net", recipe=SHORT)
    again = dataclasses.replace(own, store=Store(tmp_path_factory.mktemp("again"), _fail))
    assert run(case, own).scores == run(case, again).scores


def test_the_counts_agree_with_the_kept_predictions(own: Context, make_case: CaseMaker) -> None:
    from pyarrow import parquet

    case = make_case("badnets", "spatial_smoothing", model="shallow_net", recipe=SHORT)
    (score,) = run(case, own).scores
    rows = parquet.read_table(own.store.folder("score", score.predictions) / PREDICTIONS).to_pylist()
    labels = own.data(case).test.open().labels.tolist()
    clean, triggered = ([row for row in rows if row["set"] == which] for which in ("clean", "backdoor"))
    assert [row["label"] for row in clean] == [row["label"] for row in triggered] == labels
    assert score.clean.hits == sum(row["predicted"] == row["label"] for row in clean)
    others = [row for row in triggered if row["label"] != 0]
    (backdoor,) = score.backdoors
    assert {row["wanted"] for row in triggered} == {0}
    assert (backdoor.asr.hits, backdoor.asr.n) == (sum(row["predicted"] == 0 for row in others), len(others))
    assert backdoor.robust.hits == sum(row["predicted"] == row["label"] for row in others)
    assert sum(counts.n for counts in backdoor.by_class) == len(others)


def test_the_none_column_is_the_undefended_victim_even_after_a_repair(own: Context, make_case: CaseMaker) -> None:
    settings: dict[str, Any] = {"model": "shallow_net", "recipe": SHORT}
    repaired = run(make_case("badnets", "fine_tuning", **settings), own).scores[0]
    (plain,) = run(make_case("badnets", "none", **settings), own).scores
    assert plain.clean == plain.undefended_clean == repaired.undefended_clean
    assert tuple(backdoor.asr for backdoor in plain.backdoors) == plain.undefended_asr == repaired.undefended_asr
    assert repaired.clean != plain.clean


# --------------------------------------------------------------------------------------------------------------- keys


def change(**changes: Any) -> Callable[[Case], Case]:
    return lambda case: dataclasses.replace(case, **changes)


def setting(part: str, **settings: Any) -> Callable[[Case], Case]:
    return lambda case: dataclasses.replace(case, **{part: dataclasses.replace(getattr(case, part), **settings)})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param(setting("attack", poison_ratio=0.2), ALL, id="attack setting"),
        pytest.param(setting("attack", margin=1), ALL, id="trigger setting"),
        pytest.param(setting("recipe", epochs=2.0), ALL, id="recipe"),
        pytest.param(setting("recipe", precision="fp32"), ALL, id="precision"),
        pytest.param(setting("recipe", compile=True), ALL, id="compile"),
        pytest.param(change(seeds=(1,)), ALL, id="seed"),
        pytest.param(setting("defense", learning_rate=0.02), {"defended", "score"}, id="defense setting"),
        pytest.param(change(reserve=99), {"defended", "score"}, id="reserve"),
        pytest.param(change(suite="another", expected="why", min_undefended_asr=0.1), set(), id="what nobody computes"),
    ],
)
def test_an_ingredient_changes_what_lies_downstream_and_nothing_else(
    changed: Callable[[Case], Case], expected: set[str], context: Context, make_case: CaseMaker
) -> None:
    case = make_case("badnets", "fine_tuning", recipe=SHORT)
    assert differing(case, changed(case), context) == expected


def test_the_parts_themselves_change_what_lies_downstream(context: Context, make_case: CaseMaker) -> None:
    case = make_case("badnets", "fine_tuning")
    assert differing(case, make_case("single_pixel", "fine_tuning"), context) == ALL
    assert differing(case, make_case("badnets", "fine_tuning", model="le_net"), context) == ALL
    assert differing(case, make_case("badnets", "jpeg_compression"), context) == {"defended", "score"}
    assert differing(case, make_case("badnets", "fine_tuning"), context) == set()


def test_the_data_change_every_key(context: Context, make_case: CaseMaker, registry: Registry) -> None:
    case = make_case("badnets", "fine_tuning")
    small = dataclasses.replace(case, task=registry.build(Kind.TASK, "digits", {"size": 20}), task_name="small digits")
    assert differing(case, small, context) == ALL


def test_classes_that_no_image_has_change_every_key(
    context: Context, make_case: CaseMaker, registry: Registry, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "clean.h5", "w") as file:
        file["data"], file["label"] = np.arange(12 * 64.0).reshape(12, 1, 8, 8) % 256, np.arange(12) % 10
    case = make_case("badnets", "fine_tuning")
    settings = [{"path": tmp_path / "clean.h5", "clean_only": True, "classes": classes} for classes in (10, 12)]
    one, two = (
        dataclasses.replace(case, task=registry.build(Kind.TASK, "h5", each), task_name=f"h5 {each['classes']}")
        for each in settings
    )
    assert differing(one, two, context) == ALL


def test_the_setting_of_an_architecture_changes_every_key(
    context: Context, make_case: CaseMaker, registry: Registry
) -> None:
    case = make_case("badnets", "fine_tuning")
    nets = [registry.build(Kind.MODEL, "resnet50", {"weights": "none", "frozen": frozen}) for frozen in (True, False)]
    one, two = (dataclasses.replace(case, architecture=net) for net in nets)
    assert differing(one, two, context) == ALL


def test_a_proxys_architecture_and_its_code_are_in_the_victims_key(context: Context, make_case: CaseMaker) -> None:
    case = make_case("clean_label", "fine_tuning")
    other = make_case("clean_label", "fine_tuning", attack_settings={"proxy_model": "le_net"})
    assert differing(case, other, context) == ALL
    assert set(tools_for(other, 0, context).others) == {"le_net"}


def test_the_arithmetic_that_auto_stands_for_is_in_the_victims_key(
    context: Context, make_case: CaseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case("badnets")
    found = set()
    for fast in (True, False):
        monkeypatch.setattr("gauntlet.precision.has_fast_bf16", lambda _device, fast=fast: fast)
        found.add(victim_key(case, 0, context))
    assert len(found) == 2


PLUGIN = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gauntlet.architecture import Architecture
from gauntlet.attack import Family
from gauntlet.defense import Filter
from gauntlet.plugin import attack, defense, model
from gauntlet.poisoning import Poisoning
{imports}

{body}
"""
ATTACK = '''
@attack
@dataclass(frozen=True)
class Mine(Poisoning):
    """Of this test."""

    family: ClassVar[Family] = Family.DIRTY_LABEL

    def trigger(self, images):
        images = images.clone()
        images[:, :, :{rows}] = 1
        return images
'''
DEFENSE = '''
@defense
@dataclass(frozen=True)
class Mine(Filter):
    """Of this test."""

    def keep(self, view):
        return view.training.labels {sign} 0
'''
MODEL = '''
@model
@dataclass(frozen=True)
class Mine(Architecture):
    """Of this test."""

    feature_layer: ClassVar[str] = "0"
    last_conv: ClassVar = None

    def build(self, shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes), nn.{layer}())
'''

Write = Callable[..., tuple[Context, Registry]]


@pytest.fixture
def plugged(context: Context, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """A context whose registry knows the plug-in `mine`, written anew into a folder of its own."""

    def write(body: str, imports: str = "", helper: str = "", **values: object) -> tuple[Context, Registry]:
        folder = tmp_path_factory.mktemp("plugin")
        (folder / "mine.py").write_text(PLUGIN.format(imports=imports, body=body.format(**values)))
        (folder / "helper.py").write_text(helper)
        registry = Registry.discover([folder / "mine.py"])
        return dataclasses.replace(context, registry=registry), registry

    return write


@pytest.mark.parametrize(
    ("kind", "body", "name", "one", "two", "expected"),
    [
        (Kind.ATTACK, ATTACK, "rows", 3, 4, ALL),
        (Kind.DEFENSE, DEFENSE, "sign", "==", "!=", {"defended", "score"}),
        (Kind.MODEL, MODEL, "layer", "Identity", "ReLU", ALL),
    ],
)
def test_the_code_of_a_plug_in_changes_what_lies_downstream(
    kind: Kind,
    body: str,
    name: str,
    one: object,
    two: object,
    expected: set[str],
    plugged: Write,
    make_case: CaseMaker,
) -> None:
    case = make_case("badnets", "fine_tuning")
    part = "architecture" if kind is Kind.MODEL else kind.name.lower()
    found = []
    for source, value in ((body, one), (body, two), (f"# only a comment\n{body}", one)):
        context, registry = plugged(source, **{name: value})
        changed = dataclasses.replace(case, **{part: registry.build(kind, "mine", {})})
        found.append((changed, context))
    (first, context), (second, other), (commented, third) = found
    assert differing(first, second, context, other) == expected
    assert differing(first, commented, context, third) == set()


def test_the_code_of_a_plug_ins_helper_counts_too(plugged: Write, make_case: CaseMaker) -> None:
    found = []
    for rows in (3, 4, 3):
        body = ATTACK.replace("{rows}", "ROWS")
        context, registry = plugged(body, imports="from .helper import ROWS", helper=f"ROWS = {rows}\n")
        case = dataclasses.replace(make_case("badnets"), attack=registry.build(Kind.ATTACK, "mine", {}))
        found.append(victim_key(case, 0, context))
    assert found[0] == found[2] != found[1]


def test_a_shared_training_depends_on_how_its_network_is_made(
    own: Context, make_case: CaseMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def recording(*modules: str) -> str:
        asked.append(modules)
        return fingerprint(*modules)

    monkeypatch.setattr(gauntlet.toolbox, "fingerprint", recording)
    run(make_case("none", model="shallow_net", recipe=SHORT), own)
    assert all("gauntlet.toolbox" in modules for modules in asked)
    assert asked


# ------------------------------------------------------------------------------------------- sharing and applicability


def test_trainings_of_one_content_are_done_once(own: Context, make_case: CaseMaker, trainings: Trainings) -> None:
    for defense in ("none", "clean_retrain", "perfect_filter", "random_filter"):
        run(make_case("none", defense, model="shallow_net", recipe=SHORT), own)
    assert len(trainings) == 1
    run(make_case("badnets", "clean_retrain", model="shallow_net", recipe=SHORT), own)
    assert len(trainings) == 2
    run(make_case("badnets", "clean_retrain", model="shallow_net", recipe=SHORT, seeds=(1,)), own)
    assert len(trainings) == 4


def test_a_filter_trains_on_what_it_keeps(plugged: Write, make_case: CaseMaker, tmp_path: Path) -> None:
    context, registry = plugged(DEFENSE, sign="!=")
    context = dataclasses.replace(context, store=Store(tmp_path, _fail))
    case = make_case("badnets", model="shallow_net", recipe=Recipe(epochs=3, learning_rate=3e-3))
    (score,) = run(dataclasses.replace(case, defense=registry.build(Kind.DEFENSE, "mine", {})), context).scores
    assert score.clean_by_class[0].hits == 0
    assert score.backdoors[0].asr.hits == 0
    assert score.clean.hits > 0


@pytest.mark.parametrize(
    ("defense", "settings"),
    [
        ("perfect_filter", {}),
        ("random_filter", {}),
        ("pgd_training", {}),
        ("spatial_smoothing", {"apply_fit": True}),
        ("jpeg_compression", {"apply_fit": True, "apply_predict": False}),
    ],
)
def test_what_needs_a_training_set_says_nothing_of_a_delivered_model(
    defense: str, settings: dict[str, Any], context: Context, make_case: CaseMaker
) -> None:
    case = make_case("adversarial_embedding", defense, model="shallow_net", recipe=SHORT, defense_settings=settings)
    with pytest.raises(NotApplicableError, match="hands over a trained model"):
        run(case, context)


@pytest.mark.parametrize("defense", ["none", "fine_tuning", "spatial_smoothing", "clean_retrain"])
def test_what_needs_none_works_on_a_delivered_model(defense: str, context: Context, make_case: CaseMaker) -> None:
    outcome = run(make_case("adversarial_embedding", defense, model="shallow_net", recipe=SHORT), context)
    assert outcome.scores[0].clean.n == 449


# ----------------------------------------------------------------------------------------------------- the three views


@pytest.mark.parametrize("attack", ["badnets", "adversarial_embedding"])
def test_the_defender_cant_count_the_poison_from_the_facts(attack: str, own: Context, make_case: CaseMaker) -> None:
    """The clean training set's class counts beside the delivered labels would name the target and the poison."""
    case = make_case(attack, "fine_tuning", model="shallow_net", recipe=SHORT)
    tools = tools_for(case, 0, own)
    mounted = mount(case.attack, tools).value
    view = defender_view(case.defense, case.attack, mounted, mounted.network, case.reserve, tools)
    shown = torch.tensor(view.facts.train_counts)
    if view.deliver is None:
        assert not shown.any()
    else:
        assert torch.equal(shown, torch.bincount(view.training.labels, minlength=view.facts.classes))


def test_the_defender_holds_its_budget_of_clean_images_and_no_more(own: Context, make_case: CaseMaker) -> None:
    case = make_case("none", "fine_tuning", model="shallow_net", recipe=SHORT, reserve=10)
    tools = tools_for(case, 0, own)
    mounted = mount(case.attack, tools).value
    view = defender_view(case.defense, case.attack, mounted, mounted.network, case.reserve, tools)
    assert len(view.reserve) == len(view.reserve.base) == 10
    view.reserve.base.zero_()
    assert own.data(case).reserve(10).images().any()


def test_the_attackers_proxy_is_not_the_victims_twin(own: Context, make_case: CaseMaker, trainings: Trainings) -> None:
    """The attacker doesn't know the seed of the victim's training: noise against a twin would flatter the attack."""
    case = make_case("clean_label", model="shallow_net", recipe=SHORT)
    case.attack.mount(attacker_view(tools_for(case, 0, own)))
    (proxy_for, proxy), (victim_for, victim) = trainings
    assert proxy_for != victim_for == ("training",)
    assert any(not torch.equal(proxy[name], victim[name]) for name in proxy)
