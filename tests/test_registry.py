from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from gauntlet.attack import Attack
from gauntlet.defense import Repair
from gauntlet.errors import GauntletError, MissingMethodError, SettingError, UnknownNameError
from gauntlet.fingerprint import fingerprint
from gauntlet.plugin import _NEEDED, Kind, kind_of, name_of
from gauntlet.registry import Registry
from gauntlet.settings import Count, Positive, build
from gauntlet.views import DefenderView

ROOT = Path(__file__).parents[1]
FOLDERS = tuple(kind.value for kind in Kind)
ATTACK = '''"""An attack of somebody else."""
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from gauntlet.attack import Attack, Family
from gauntlet.plugin import attack
from gauntlet.settings import Count


@attack
@dataclass(frozen=True)
class Mine(Attack):
    """Invented for this test."""

    family: ClassVar = Family.CONTROL
    size: Count = 3

    @property
    def backdoors(self):
        return ()

    def mount(self, view):
        return view
'''
DEFENSE = """from dataclasses import dataclass
from gauntlet.defense import Preprocessing, Repair
from gauntlet.plugin import defense


class Shared:
    def repair(self, view):
        return view.victim


@defense
@dataclass(frozen=True)
class Mine(Repair):
    '''Invented for this test.'''

    def repair(self, view):
        return view.victim
"""
STAGELESS = """from dataclasses import dataclass
from gauntlet.defense import Defense
from gauntlet.plugin import defense


@defense
@dataclass(frozen=True)
class Mine(Defense):
    '''Invented for this test.'''
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def write(path: Path, text: str = ATTACK) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", Kind)
def test_every_file_in_a_folder_is_found_under_its_own_name(registry: Registry, kind: Kind) -> None:
    classes = registry.classes(kind)
    assert list(classes) == sorted(classes)
    files = {path.stem for path in (ROOT / kind).glob("[!_]*.py")}
    assert set(classes) <= files
    for name, cls in classes.items():
        assert name == name_of(cls)
        assert kind_of(cls) is kind
        assert Path(str(sys.modules[cls.__module__].__file__)).resolve() == (ROOT / kind / f"{name}.py").resolve()
        assert registry.get(kind, name) is cls


def test_known_plugins_are_there(registry: Registry) -> None:
    import attacks.badnets

    assert registry.get(Kind.ATTACK, "badnets") is attacks.badnets.BadNets
    assert {"none", "clean_label", "single_pixel"} <= registry.classes(Kind.ATTACK).keys()
    assert {"digits", "parquet", "folder"} <= registry.classes(Kind.TASK).keys()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (Kind.ATTACK, "badnet", "unknown attack 'badnet'; did you mean badnets"),
        (Kind.MODEL, "lenet", "unknown model 'lenet'; did you mean le_net"),
        (Kind.DEFENSE, "qqq", "unknown defense 'qqq'; known: .*fine_tuning"),
    ],
)
def test_unknown_names_list_the_nearest(registry: Registry, kind: Kind, name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        registry.get(kind, name)


def test_settings_are_checked(tmp_path: Path) -> None:
    registry = Registry.discover([write(tmp_path / "mine.py")])
    mine = registry.build(Kind.ATTACK, "mine", {"size": 5})
    assert isinstance(mine, Attack)
    assert repr(mine) == "Mine(size=5)"
    with pytest.raises(SettingError, match=r"attack mine: setting size = 0: .*greater than or equal to 1"):
        registry.build(Kind.ATTACK, "mine", {"size": 0})
    with pytest.raises(SettingError, match=r"attack mine: unknown setting 'sise'; did you mean size"):
        registry.build(Kind.ATTACK, "mine", {"sise": 1})


@dataclass(frozen=True)
class _Inner:
    size: Count


@dataclass(frozen=True)
class _Strict:
    strength: Positive
    inner: tuple[_Inner, ...] = ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "attack mine: setting strength is missing; legal: number > 0"),
        ({"strength": 1, "inner": [{"size": 1}, {}]}, "attack mine: setting inner[1].size is missing"),
    ],
)
def test_a_setting_that_is_missing_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        build(_Strict, given, "attack mine")
    assert str(caught.value) == message


def test_files_of_one_name_in_two_folders(tmp_path: Path) -> None:
    defense = ATTACK.replace("gauntlet.attack", "gauntlet.defense").replace("Attack, Family", "Filter, Stage")
    defense = defense.replace("import attack", "import defense").replace("@attack", "@defense")
    defense = defense.replace("Mine(Attack)", "Mine(Filter)").replace("family: ClassVar = Family.CONTROL", "")
    defense = defense.replace("def mount", "def keep")
    one, other = write(tmp_path / "one/mine.py"), write(tmp_path / "other/mine.py", defense)
    registry = Registry.discover([one, other, one])
    attack, its_namesake = registry.get(Kind.ATTACK, "mine"), registry.get(Kind.DEFENSE, "mine")
    assert (name_of(attack), name_of(its_namesake)) == ("mine", "mine")
    assert attack.__module__ != its_namesake.__module__


def test_two_attacks_of_one_name_name_both_files(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one/mine.py"), write(tmp_path / "other/mine.py")
    with pytest.raises(SettingError, match=f"two attacks are named mine: {one} and {other}; rename"):
        Registry.discover([other, one])
    clash = write(tmp_path / "badnets.py")
    with pytest.raises(SettingError, match=f"two attacks are named badnets: .*attacks/badnets.py and {clash}"):
        Registry.discover([clash])


def test_a_helper_may_share_its_name_with_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write(tmp_path / "site/their_helper/__init__.py", "").parent
    write(package / "shared.py", "VALUE = 1\n")
    entry_point(tmp_path / "site", "shared = their_helper.shared")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    mine = write(tmp_path / "shared.py")
    assert Registry.discover([mine]).get(Kind.ATTACK, "shared").__name__ == "Mine"
    with pytest.raises(UnknownNameError, match="shared"):
        Registry.discover().get(Kind.ATTACK, "shared")


def test_a_file_of_the_project_named_again_is_no_duplicate() -> None:
    assert Registry.discover([ROOT / "attacks/badnets.py"]).get(Kind.ATTACK, "badnets").__module__ == "attacks.badnets"


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "numbers.py", "FIVE = 5\n")
    text = ATTACK.replace("class Mine", "class Neighbour").replace("Count = 3", "Count = FIVE")
    path = write(tmp_path / "neighbour.py", text.replace("\n\n\n", "\nfrom .numbers import FIVE\n\n\n", 1))
    cls = Registry.discover([path]).get(Kind.ATTACK, "neighbour")
    assert cls().size == 5
    before = fingerprint(cls.__module__)
    sys.modules.pop(f"{cls.__module__.rpartition('.')[0]}.numbers")
    write(tmp_path / "numbers.py", "FIVE = 50\n")
    assert fingerprint(cls.__module__) != before


def test_a_file_may_import_what_lies_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    write(tmp_path / "elsewhere/their_numbers.py", "SEVEN = 7\n")
    text = ATTACK.replace("class Mine", "class Elsewhere").replace("Count = 3", "Count = SEVEN")
    path = write(tmp_path / "elsewhere_.py", text.replace("\n\n\n", "\nfrom their_numbers import SEVEN\n\n\n", 1))
    cls = Registry.discover([path]).get(Kind.ATTACK, "elsewhere_")
    before = fingerprint(cls.__module__)
    sys.modules.pop("their_numbers")
    write(tmp_path / "elsewhere/their_numbers.py", "SEVEN = 70\n")
    assert fingerprint(cls.__module__) != before


def test_a_plugin_file_has_one_fingerprint_wherever_it_lies(tmp_path: Path) -> None:
    marks = set()
    for folder in ("one", "other"):
        path = write(tmp_path / folder / "mine.py")
        marks.add(fingerprint(Registry.discover([path]).get(Kind.ATTACK, "mine").__module__))
    changed = write(tmp_path / "third/mine.py", ATTACK.replace("Count = 3", "Count = 4"))
    assert len(marks) == 1
    assert fingerprint(Registry.discover([changed]).get(Kind.ATTACK, "mine").__module__) not in marks


@pytest.mark.parametrize("name", ["absent.py", "notes.txt", "two.dots.py", "my-attack.py", "."])
def test_what_is_no_plugin_file(tmp_path: Path, name: str) -> None:
    if name not in {"absent.py", "."}:
        write(tmp_path / name)
    with pytest.raises(SettingError, match=r"--plugin .*: no such Python file"):
        Registry.discover([tmp_path / name])


def test_a_plugin_file_without_a_plugin(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"empty.py: it holds no class marked"):
        Registry.discover([write(tmp_path / "empty.py", "from attacks.badnets import BadNets\n")])


def test_two_plugins_of_a_kind_in_one_file(tmp_path: Path) -> None:
    second = ATTACK[ATTACK.index("@attack") :].replace("class Mine", "class Yours")
    registry = Registry.discover([write(tmp_path / "double.py", f"{ATTACK}\n\n{second}")])
    with pytest.raises(SettingError, match=r"double.py holds two attacks, Mine and Yours"):
        registry.get(Kind.ATTACK, "double")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def broken(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        (ATTACK.replace('"""Invented for this test."""', ""), "TypeError: .*needs a docstring"),
        (ATTACK.replace("Mine(Attack)", "Mine"), r"TypeError: .*failing.Mine .* must derive gauntlet.attack.Attack"),
        (ATTACK.replace("family: ClassVar = Family.CONTROL", ""), "TypeError: .*failing.Mine has no family"),
        (ATTACK.replace("@dataclass(frozen=True)\n", ""), r"TypeError: .*failing.Mine must be a frozen dataclass"),
        (ATTACK.replace("@attack\n", "").replace("class Mine", "@attack\nclass Mine"), "TypeError: .*below @attack"),
        (STAGELESS, "TypeError: .*failing.Mine has no stage: derive the base of a stage"),
        (ATTACK.replace("def mount", "def muont"), r"TypeError: .*failing.Mine has no method mount: rename muont$"),
        (
            ATTACK.replace("def backdoors", "def pictures"),
            r"TypeError: .*Mine has no method backdoors: write it as gauntlet.attack.Attack describes it$",
        ),
        (
            ATTACK.replace(
                "gauntlet.attack import Attack,",
                "gauntlet.poisoning import Poisoning as Attack\nfrom gauntlet.attack import",
            )
            .replace("def mount", "def triger")
            .replace("@property\n    def backdoors", "def other"),
            r"TypeError: .*Mine has no method trigger: rename triger$",
        ),
        (
            DEFENSE.replace(
                "    def repair(self, view):\n        return view.victim\n",
                "    def repiar(self, view):\n        return view.victim\n",
            ),
            "TypeError: .*Mine has no method repair: rename repiar$",
        ),
        (
            DEFENSE.replace("Mine(Repair)", "Mine(Preprocessing)"),
            "TypeError: .*Mine has no method transform: write it as",
        ),
    ],
)
def test_a_module_that_fails_is_named_with_the_cause(tmp_path: Path, text: str, cause: str) -> None:
    path = write(tmp_path / "failing.py", text)
    with pytest.raises(GauntletError, match=f"the plug-in {path} can't be imported: {cause}"):
        Registry.discover([path])


@pytest.mark.parametrize(
    "change",
    [
        ("Mine(Repair)", "Mine(Shared, Repair)"),
        ("Mine(Repair)", "Mine(Preprocessing)"),
    ],
)
def test_a_method_may_come_from_another_base_or_be_its_quicker_form(tmp_path: Path, change: tuple[str, str]) -> None:
    head, _, _ = DEFENSE.replace(*change).rpartition("    def repair")
    body = (
        "" if "Shared" in change[1] else "    def transform_levels(self, levels, generator):\n        return levels\n"
    )
    path = write(tmp_path / "whole.py", head + body)
    assert Registry.discover([path]).get(Kind.DEFENSE, "whole").__name__ == "Mine"


def test_a_method_that_is_missing_all_the_same_is_told_in_one_line() -> None:
    with pytest.raises(MissingMethodError, match=r"^defense: the class Repair has no method repair$") as caught:
        Repair().repair(cast("DefenderView", None))
    assert isinstance(caught.value, GauntletError)


def test_every_method_that_a_base_asks_for_is_checked() -> None:
    """What raises `missing` in a base of plug-ins stands in the table of the decorators."""
    asked = set()
    for kind in Kind:
        for cls in Registry.discover().classes(kind).values():
            for base in cls.__mro__:
                if kind_of(base) is None and base.__module__.startswith("gauntlet."):
                    asked |= {
                        (f"{base.__module__}.{base.__qualname__}", name)
                        for name, value in vars(base).items()
                        if "missing" in getattr(getattr(value, "fget", value), "__code__", write.__code__).co_names
                    }
    assert asked <= {(base, methods[0]) for base, methods in _NEEDED}
    assert len(asked) > 10


def entry_point(site: Path, line: str) -> None:
    info = site / "their_package-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    write(info / "entry_points.txt", f"[gauntlet.attacks]\n{line}\n")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("size: Cuont = 3", "'Cuont' is not defined, but Mine uses it as a type; import it there"),
        ("size: Sized = ()", "a setting of Mine has no type that TOML can write"),
    ],
)
def test_settings_of_unknown_types(tmp_path: Path, change: str, cause: str) -> None:
    text = ATTACK.replace("size: Count = 3", change).replace(
        "from typing", "from collections.abc import Sized\nfrom typing"
    )
    path = write(tmp_path / "mine.py", text)
    with pytest.raises(SettingError, match=cause) as caught:
        Registry.discover([path]).get(Kind.ATTACK, "mine")
    assert str(path) in str(caught.value)


def test_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write(tmp_path / "their_package/__init__.py", "").parent
    write(package / "theirs.py", ATTACK.replace("class Mine", "class Theirs"))
    entry_point(tmp_path, "anything = their_package.theirs")
    monkeypatch.syspath_prepend(str(tmp_path))
    cls = Registry.discover().get(Kind.ATTACK, "theirs")
    assert (cls.__name__, cls.__module__) == ("Theirs", "their_package.theirs")
    with pytest.raises(
        SettingError, match=r"entry point anything = their_package.theirs of their-package and .*theirs"
    ):
        Registry.discover([write(tmp_path / "theirs.py")])


def test_an_entry_point_that_fails_is_no_matter_until_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_point(tmp_path, "gone = their_gone_package.gone")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry.discover()
    assert registry.get(Kind.ATTACK, "badnets")
    with pytest.raises(
        GauntletError, match=r"gone = their_gone_package.gone of their-package can't be imported: Module"
    ):
        registry.get(Kind.ATTACK, "gone")


TASK = '''"""Tasks of somebody else."""
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from gauntlet.plugin import task
from gauntlet.task import TaskSource


@task
@dataclass(frozen=True)
class Source(TaskSource):
    """Invented for this test."""

    def load(self, context):
        raise LookupError

'''


@dataclass(frozen=True)
class _Case:
    body: str
    text: str
    outcome: str


@pytest.mark.parametrize(
    "case",
    [
        _Case("    path: Path", "source:/some/path:with:colons", "Source(path=PosixPath('/some/path:with:colons'))"),
        _Case("    path: Path = Path('here')", "source", "Source(path=PosixPath('here'))"),
        _Case("    path: Path = Path('here')", "source:there", "Source(path=PosixPath('there'))"),
        _Case("    size: int = 3", "source", "Source(size=3)"),
    ],
)
def test_tasks_are_written_with_their_path(tmp_path: Path, case: _Case) -> None:
    registry = Registry.discover([write(tmp_path / "source.py", TASK + case.body)])
    assert repr(registry.task(case.text)) == case.outcome


@pytest.mark.parametrize(
    "case",
    [
        _Case("    path: Path", "source", "task source: the path is missing; write source:PATH"),
        _Case("    path: Path", "source:", "task source:: the path is missing; write source:PATH"),
        _Case("    path: Path = Path('here')", "source:", "task source:: the path is missing; write source:PATH"),
        _Case("    size: int = 3", "source:there", "task source:there: source takes no path; write source"),
        _Case("    size: int = 3", "sauce:there", "unknown task 'sauce'; did you mean source"),
    ],
)
def test_tasks_that_are_written_wrongly(tmp_path: Path, case: _Case) -> None:
    registry = Registry.discover([write(tmp_path / "source.py", TASK + case.body)])
    with pytest.raises(SettingError, match=case.outcome):
        registry.task(case.text)


SHOW = """
import sys
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
registry = Registry.discover()
before = sorted(name for name in sys.modules if name.split('.')[-1] in ('badnets', 'digits', 'le_net'))
print(before, registry.get(Kind.MODEL, 'le_net').__module__, registry.get(Kind.ATTACK, 'badnets').__module__)
import models
print(models.__file__)
"""


@pytest.mark.parametrize("layout", ["wheel", "clone"])
def test_beside_somebody_elses_package_named_models(tmp_path: Path, layout: str) -> None:
    """A wheel's plug-ins, and those of a clone whose root is not on the path, while another `models` is."""
    theirs = write(tmp_path / "elsewhere/models/__init__.py", "")
    root = tmp_path / "root"
    shutil.copytree(ROOT / "src/gauntlet", root / ("src/gauntlet" if layout == "clone" else "gauntlet"))
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / (folder if layout == "clone" else f"gauntlet/{folder}"))
    path = os.pathsep.join([str(theirs.parents[1]), str(root / "src" if layout == "clone" else root)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[] gauntlet.models.le_net gauntlet.attacks.badnets", str(theirs)]
