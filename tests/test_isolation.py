"""What a defense changes stays its own: the deployed network, the shared images, the features of its successors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from gauntlet.architecture import Architecture
from gauntlet.defending import defender_view
from gauntlet.defense import Filter, InputDetector, Inspection, ModelVerdict, Preprocessing, Scorer
from gauntlet.errors import GauntletError, LeakError, SettingError
from gauntlet.fingerprint import fingerprint
from gauntlet.guard import Role, acting_as
from gauntlet.images import Images
from gauntlet.mounting import mount
from gauntlet.options import Options
from gauntlet.pipeline import Context, run, tools_for
from gauntlet.plugin import Kind, name_of
from gauntlet.randomness import generator
from gauntlet.recipe import Recipe
from gauntlet.records import SeedScore
from gauntlet.registry import Registry
from gauntlet.session import open_session
from gauntlet.store import Store
from gauntlet.views import DefenderView
from tests.sample_cases import CaseMaker

SHORT = Recipe(epochs=1, batch_size=64, learning_rate=3e-3)


def _spoil(view: DefenderView) -> None:
    with torch.no_grad():
        for parameter in view.victim.parameters():
            parameter.zero_()


@dataclass(frozen=True)
class SpoilingDetector(InputDetector):
    """Takes its copy of the network apart to judge, and judges all alike."""

    def scorer(self, view: DefenderView) -> Scorer:
        _spoil(view)
        return lambda images: torch.zeros(len(images))


@dataclass(frozen=True)
class SpoilingVerdict(ModelVerdict):
    """Takes its copy of the network apart, and finds nothing."""

    def inspect(self, view: DefenderView) -> Inspection:
        _spoil(view)
        return Inspection(torch.zeros(view.facts.classes), ())


@dataclass(frozen=True)
class InPlace(Preprocessing):
    """Blackens the very images that it is given."""

    def transform(self, images: Images, generator: torch.Generator) -> Images:
        return images.zero_()

    def transform_levels(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        return levels.zero_()


FEATURES: list[Tensor] = []


@dataclass(frozen=True)
class ChangingFilter(Filter):
    """Blackens the training set that it was delivered, if asked to, before it looks at the features."""

    blacken: bool = True

    def keep(self, view: DefenderView) -> Tensor:
        if self.blacken:
            view.training.base.zero_()
        FEATURES.append(view.training_features)
        return torch.ones(len(view.training), dtype=torch.bool)


@pytest.fixture
def own(context: Context, make_case: CaseMaker, tmp_path: Path) -> Context:
    context.data(make_case("none"))
    return dataclasses.replace(context, store=Store(tmp_path, pytest.fail), datasets=dict(context.datasets))


def scored(own: Context, make_case: CaseMaker, defense: object) -> SeedScore:
    case = make_case("badnets", model="shallow_net", recipe=SHORT)
    return run(dataclasses.replace(case, defense=defense), own).scores[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("defense", [SpoilingDetector(), SpoilingVerdict()], ids=repr)
def test_what_is_deployed_is_not_what_the_defense_took_apart(
    defense: object, own: Context, make_case: CaseMaker
) -> None:
    score = scored(own, make_case, defense)
    assert score.clean == score.undefended_clean
    assert score.backdoors[0].asr == score.undefended_asr[0]


def test_a_transform_in_place_leaves_the_test_images_alone(own: Context, make_case: CaseMaker) -> None:
    before = own.data(make_case("none")).test.open().images()
    blackened = scored(own, make_case, InPlace())
    assert blackened.clean.hits < blackened.clean.n / 2
    assert torch.equal(own.data(make_case("none")).test.open().images(), before)


def test_features_are_those_of_the_set_as_it_was_delivered(own: Context, make_case: CaseMaker) -> None:
    FEATURES.clear()
    for blacken in (True, False):
        scored(own, make_case, ChangingFilter(blacken))
    assert torch.equal(*FEATURES)
    assert FEATURES[0].std(0).max() > 0


def test_the_set_behind_what_is_delivered_stays_closed(own: Context, make_case: CaseMaker) -> None:
    """The copy doesn't tell which images were changed; what it is made of does."""
    case = make_case("badnets", "fine_tuning", model="shallow_net", recipe=SHORT)
    tools = tools_for(case, 0, own)
    mounted = mount(case.attack, tools).value
    view = defender_view(case.defense, case.attack, mounted, mounted.network, case.reserve, tools)
    assert view.deliver is not None
    with acting_as(Role.DEFENDER):
        with pytest.raises(LeakError, match="which training images were changed"):
            view.deliver._source.open()  # type: ignore[attr-defined]
        assert view.training is view.training
        assert not len(view.training.changed)
    assert torch.equal(view.training.images(), mounted.training.images())


def test_neither_the_attack_nor_its_draws_can_be_read_from_what_a_defender_holds(
    own: Context, make_case: CaseMaker
) -> None:
    """Whoever knows the seed can repeat the attacker's draws; whoever holds the tools reads the attack's name there."""
    case = make_case("badnets", "fine_tuning", model="shallow_net", recipe=SHORT)
    tools = tools_for(case, 0, own)
    mounted = mount(case.attack, tools).value
    view = defender_view(case.defense, case.attack, mounted, mounted.network, case.reserve, tools)
    with acting_as(Role.DEFENDER):
        assert not hasattr(view, "seed")
        assert not hasattr(view.tools, "who")
        assert not any(hasattr(call, "__self__") for call in (view.tools.train, view.tools.new_network))
        with pytest.raises(LeakError, match="the case's seed"):
            view.draws._seed.open()
        own_draw = torch.rand(3, generator=view.generator("mine"))
    assert torch.equal(own_draw, torch.rand(3, generator=generator(0, "DefenderView", "mine")))


def test_code_that_is_edited_during_a_session_counts_as_it_was_loaded(tmp_path: Path) -> None:
    """The suite's parts are fingerprinted when the session opens, not when their first case runs."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.format(quality=30))
    suite = tmp_path / "suite.toml"
    suite.write_text('tasks = ["digits"]\narchitectures = ["shallow_net"]\nattacks = ["none"]\ndefenses = ["mine"]\n')
    options = Options(suites=(str(suite),), plugins=(plugin,), store=tmp_path / "store", device="cpu")
    session = open_session(options, pytest.fail)
    plugin.write_text(PLUGIN.format(quality=90))
    (case,) = (case for case in session.cases if name_of(case.defense) == "mine")
    found = fingerprint(type(case.defense).__module__)
    plugin.write_text(PLUGIN.format(quality=30))
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "mine.py").write_text(PLUGIN.format(quality=30))
    again = Registry.discover([fresh / "mine.py"]).get(Kind.DEFENSE, "mine")
    assert found == fingerprint(again.__module__)


PLUGIN = '''"""Of this test."""
from __future__ import annotations
from dataclasses import dataclass
from gauntlet.defense import Preprocessing
from gauntlet.maths.jpeg import jpeg_round_trip
from gauntlet.plugin import defense

@defense
@dataclass(frozen=True)
class Mine(Preprocessing):
    """Of this test."""

    def transform(self, images, generator):
        return jpeg_round_trip(images, {quality})
'''


@pytest.mark.parametrize("hint", ["list[int]", "dict[str, float]", "list[int] | None", "tuple[list[int], ...]"])
def test_a_setting_that_can_be_changed_is_refused(hint: str, tmp_path: Path) -> None:
    text = PLUGIN.format(quality=30).replace("    def transform", f"    levels: {hint} = None\n\n    def transform")
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(SettingError, match=r"setting levels of Mine can be changed; write tuple"):
        Registry.discover([tmp_path / "mine.py"]).get(Kind.DEFENSE, "mine")


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("window: Count = 0", "window of Mine has the default 0: input should be greater than or equal to 1"),
        ("norm: Literal['inf', '2'] = '1'", "norm of Mine has the default '1': input should be 'inf' or '2'"),
        ("sigma: float = None", "sigma of Mine has the default None: input should be a valid number"),
        (
            "sides: Size = field(default_factory=lambda: (0, 1))",
            r"sides of Mine has the default \(0, 1\): input should be",
        ),
    ],
)
def test_a_default_that_is_not_legal_is_refused(field: str, problem: str, tmp_path: Path) -> None:
    imports = "import dataclass, field\nfrom typing import Literal\nfrom gauntlet.settings import Count, Size\n"
    text = PLUGIN.format(quality=30).replace("import dataclass\n", imports)
    (tmp_path / "mine.py").write_text(text.replace("    def transform", f"    {field}\n\n    def transform"))
    with pytest.raises(SettingError, match=problem):
        Registry.discover([tmp_path / "mine.py"]).get(Kind.DEFENSE, "mine")


@pytest.mark.parametrize(
    "field",
    ["window: int = Field(3, ge=1)", "model: FilePath = Path('/nowhere/model.h5')", "apply_predict: bool = False"],
)
def test_a_default_that_a_suite_may_replace_is_taken(field: str, tmp_path: Path) -> None:
    imports = "import dataclass\nfrom pathlib import Path\nfrom pydantic import Field, FilePath\n"
    text = PLUGIN.format(quality=30).replace("import dataclass\n", imports)
    (tmp_path / "mine.py").write_text(text.replace("    def transform", f"    {field}\n\n    def transform"))
    assert Registry.discover([tmp_path / "mine.py"]).get(Kind.DEFENSE, "mine").__name__ == "Mine"


@dataclass(frozen=True)
class Forgetful(Architecture):
    """Keeps a buffer outside its state."""

    feature_layer: ClassVar[str] = "0"
    last_conv: ClassVar[str | None] = None

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        body = nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], classes))
        body.register_buffer("scale", torch.ones(1), persistent=False)
        return body


def test_a_model_whose_copies_would_lack_something_is_refused(own: Context, make_case: CaseMaker) -> None:
    case = dataclasses.replace(make_case("badnets", "fine_tuning", recipe=SHORT), architecture=Forgetful())
    with pytest.raises(GauntletError, match=r"the buffer body.scale is no part of its state"):
        run(case, own)
