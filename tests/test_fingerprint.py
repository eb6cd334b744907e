from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gauntlet.fingerprint import fingerprint, versions

ROOT = Path(__file__).parents[1]
SERIAL = itertools.count()
PLUGIN = '''"""A plug-in."""
from __future__ import annotations
from typing import TYPE_CHECKING
from . import helper
from .deep.tool import cut
if TYPE_CHECKING:
    from .only_types import Shape

LIMIT = 3


def run(x: Shape) -> int:
    """Runs."""
    def inner() -> int:
        import importlib
        from .late import more
        return more + LIMIT
    return inner() + helper.add(x) + cut(x)
'''
FILES = {
    "__init__.py": "",
    "plugin.py": PLUGIN,
    "helper.py": "from .base import ONE\ndef add(x):\n    return x + ONE\n",
    "base.py": "ONE = 1\n",
    "late.py": "more = 1\n",
    "only_types.py": "Shape = int\n",
    "unused.py": "VALUE = 1\n",
    "deep/__init__.py": "",
    "deep/tool.py": "import json\ndef cut(x):\n    return x\n",
}


class Package:
    """A package on sys.path that is never imported, written anew for every test."""

    def __init__(self, folder: Path) -> None:
        self.name = f"sample_{os.getpid()}_{next(SERIAL)}"
        self.folder = folder / self.name
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def mark(self) -> str:
        return fingerprint(f"{self.name}.plugin")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Package(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 3  # a comment"),
        ("LIMIT = 3", "\n\n\nLIMIT = (\n    3\n)"),
        ('"""Runs."""', '"""Runs, and says so at length."""'),
        ('"""Runs."""', ""),
        ("    def inner() -> int:", '    def inner() -> int:\n        """Inner."""'),
        ("LIMIT = 3", 'LIMIT = 3\n"""The limit."""'),
        ("    from .only_types import Shape", "    from .unused import VALUE as Shape"),
        ("LIMIT = 3", "LIMIT = 3\n__all__ = ['run']\n__version__ = '2'"),
    ],
)
def test_what_has_no_effect_does_not_count(package: Package, old: str, new: str) -> None:
    before = package.mark()
    assert old in PLUGIN
    package.write("plugin.py", PLUGIN.replace(old, new))
    assert package.mark() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "LIMIT = 3.0"),
        ("helper.add(x)", "helper.add(-x)"),
        ("more +", "more *"),
    ],
)
def test_what_has_an_effect_counts(package: Package, old: str, new: str) -> None:
    before = package.mark()
    assert old in PLUGIN
    package.write("plugin.py", PLUGIN.replace(old, new))
    assert package.mark() != before


@pytest.mark.parametrize("name", ["__init__.py", "helper.py", "base.py", "late.py", "deep/__init__.py", "deep/tool.py"])
def test_every_imported_module_counts(package: Package, name: str) -> None:
    before = package.mark()
    package.write(name, f"{FILES[name]}\nEXTRA = 1\n")
    assert package.mark() != before


@pytest.mark.parametrize("name", ["only_types.py", "unused.py", "deep/stranger.py"])
def test_other_modules_do_not_count(package: Package, name: str) -> None:
    before = package.mark()
    package.write(name, f"{FILES.get(name, '')}\nEXTRA = 1\n")
    assert package.mark() == before


@pytest.mark.parametrize(
    "line",
    [
        "from {top} import scale",
        "import {top}.deep.inner",
        "from {top}.deep import inner",
        "def late():\n    from {top}.deep.inner import VALUE",
    ],
)
@pytest.mark.parametrize("regular", [True, False], ids=["package", "namespace package"])
def test_code_outside_the_plugins_package_counts(package: Package, line: str, *, regular: bool) -> None:
    top = f"{package.name}_helpers"
    for name in ("scale.py", "deep/inner.py"):
        package.write(f"../{top}/{name}", "VALUE = 1\n")
    if regular:
        package.write(f"../{top}/__init__.py", "")
        package.write(f"../{top}/deep/__init__.py", "")
    package.write("plugin.py", f"{line.format(top=top)}\n")
    before = package.mark()
    package.write(f"../{top}/{'scale' if 'scale' in line else 'deep/inner'}.py", "VALUE = 22\n")
    assert package.mark() != before


def test_what_outside_code_imports_counts_and_what_is_broken_there_does_no_harm(package: Package) -> None:
    first, second = f"{package.name}_one", f"{package.name}_two"
    package.write("plugin.py", f"import {first}\n")
    package.write(f"../{first}.py", f"try:\n    import {second}\nexcept SyntaxError:\n    pass\n")
    marks = set()
    for text in ("VALUE = 1\n", "print 22\n", "print 333\n"):
        package.write(f"../{second}.py", text)
        marks.add(package.mark())
    assert len(marks) == 3


@pytest.mark.parametrize("folder", ["site-packages", "target"])
def test_an_installed_library_counts_by_its_version(tmp_path: Path, folder: str) -> None:
    site = tmp_path / folder
    path = os.pathsep.join([str(ROOT / "src"), str(site), str(tmp_path)])
    (tmp_path / "plugin.py").write_text("import library\nimport stray\n")
    install(site, "some_library", "1.0", "library/__init__.py", "library/inner.py")
    for name in ("library/__init__.py", "stray.py"):
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text("VALUE = 1\n")
    before = fresh(path, "plugin")
    (site / "library/__init__.py").write_text("VALUE = 2\n")
    assert fresh(path, "plugin") == before
    install(site, "some_library", "1.1", "library/__init__.py", "library/inner.py")
    newer = fresh(path, "plugin")
    assert newer != before
    (site / "stray.py").write_text("VALUE = 2\n")
    assert fresh(path, "plugin") != newer, "no distribution answers for it"


def test_neither_the_engines_requirements_nor_the_standard_library_are_followed() -> None:
    import gauntlet.fingerprint
    import gauntlet.maths.aggregation
    import gauntlet.predictions
    import tasks.parquet

    modules = (gauntlet.maths.aggregation, gauntlet.predictions, tasks.parquet)
    fingerprint(*(module.__name__ for module in modules))
    loaded = gauntlet.fingerprint._loaded.items()
    found = {name for module, source in loaded if module.__name__.startswith("gauntlet.") for name in source.imports}
    found |= {name for module in modules for name in gauntlet.fingerprint._loaded[module].imports}
    assert {name.partition(".")[0] for name in found} == {"gauntlet", "tasks"}


def test_two_modules_that_import_each_other(package: Package) -> None:
    package.write("base.py", "from . import helper\nONE = 1\n")
    before = package.mark()
    package.write("base.py", "from . import helper\nONE = 2\n")
    assert package.mark() != before


def test_a_submodule_and_an_attribute_are_told_apart(package: Package) -> None:
    package.write("plugin.py", "from .deep import tool, absent\n")
    before = package.mark()
    package.write("deep/tool.py", "CUT = 2\n")
    assert package.mark() != before


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["# note", "", "   ", "#", '"""text"""']), st.integers(0, len(PLUGIN.splitlines()))),
        max_size=6,
    )
)
def test_comments_and_blank_lines_anywhere(package: Package, notes: list[tuple[str, int]]) -> None:
    package.write("plugin.py", PLUGIN)
    before = package.mark()
    lines = PLUGIN.splitlines()
    for note, place in sorted(notes, key=lambda item: -item[1]):
        # A bare text is a statement, and has to stand where a statement may: at the end of the module.
        lines.insert(len(lines) if note.startswith('"') else max(place, 2), note)
    package.write("plugin.py", "\n".join(lines))
    assert package.mark() == before


def fresh(path: str, *modules: str) -> list[str]:
    """The fingerprints in a process of its own, which knows nothing of earlier files."""
    code = (
        "import sys\nfrom gauntlet.fingerprint import fingerprint\nfor name in sys.argv[1:]: print(fingerprint(name))"
    )
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *modules]
    done = subprocess.run(command, env=environment, cwd=ROOT / "tests", capture_output=True, text=True, check=True)
    return done.stdout.split()


def install(site: Path, distribution: str, version: str, *files: str) -> None:
    """What pip leaves beside the files of a distribution, in the place of another version."""
    for old in site.glob(f"{distribution}-*.dist-info"):
        shutil.rmtree(old)
    info = site / f"{distribution}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_one_name_in_a_clone_and_in_a_wheel(tmp_path: Path) -> None:
    folders = ("attacks", "defenses", "models", "tasks", "reports")
    wheel, clone = tmp_path / "site-packages", tmp_path / "clone"
    install(wheel, "backdoor_gauntlet", "1.0", "gauntlet/__init__.py")
    shutil.copytree(ROOT / "src", clone / "src")
    for folder in folders:
        shutil.copytree(ROOT / folder, clone / folder)
        shutil.copytree(ROOT / folder, wheel / "gauntlet" / folder)
    shutil.copytree(clone / "src/gauntlet", wheel / "gauntlet", dirs_exist_ok=True)
    names = ("attacks.badnets", "models.le_net", "tasks.digits", "gauntlet.images")

    def marks(path: str, prefix: str) -> list[str]:
        return fresh(path, *(name if name.startswith("gauntlet") else prefix + name for name in names))

    in_clone = marks(os.pathsep.join([str(clone / "src"), str(clone)]), "")
    assert in_clone == marks(str(wheel), "gauntlet.")
    assert len(set(in_clone)) == len(names)


def test_a_plugin_depends_on_the_engine_and_on_no_other_plugin(tmp_path: Path) -> None:
    # The dependency is shown on a copy, so that no file of the project is touched.
    for folder in ("src", "attacks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    code = "from gauntlet.fingerprint import fingerprint\nprint(fingerprint('attacks.badnets'))"
    path = os.pathsep.join([str(tmp_path / "src"), str(tmp_path)])

    def mark() -> str:
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=True, text=True).stdout

    before = mark()
    with (tmp_path / "attacks/single_pixel.py").open("a") as file:
        file.write("\nEXTRA = 1\n")
    assert mark() == before
    with (tmp_path / "src/gauntlet/images.py").open("a") as file:
        file.write("\nEXTRA = 1\n")
    assert mark() != before


def test_what_is_loaded_counts_as_it_was_loaded(package: Package) -> None:
    package.write("plugin.py", "LIMIT = 1\n")
    name = f"{package.name}.plugin"
    __import__(name)
    before = package.mark()
    package.write("plugin.py", "LIMIT = 222\n")
    assert package.mark() == before
    del sys.modules[name]
    assert package.mark() != before


def test_unknown_modules_and_libraries_without_source() -> None:
    for name in ("gauntlet.no_such_module", "no_such_package", "no_such_package.module", "_json"):
        with pytest.raises(ModuleNotFoundError, match=name):
            fingerprint(name)


def test_the_second_time_is_quick() -> None:
    import gauntlet.store  # noqa: F401

    fingerprint("gauntlet.store")
    start = time.perf_counter()
    for _ in range(20):
        fingerprint("gauntlet.store")
    assert (time.perf_counter() - start) / 20 < 0.005


def test_versions_name_the_arithmetic() -> None:
    import numpy
    import PIL
    import torch

    assert versions() == {"torch": torch.__version__, "numpy": numpy.__version__, "pillow": PIL.__version__}
