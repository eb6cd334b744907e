"""The package as a stranger gets it: built here, installed into an environment of its own, run in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("attacks", "defenses", "models", "tasks", "reports", "bench")
SUITE = """
tasks = ["digits"]
seeds = [0]
architectures = ["shallow_net"]
attacks = ["badnets"]
defenses = ["spatial_smoothing"]
[recipe]
epochs = 0.2
[thresholds]
min_undefended_asr = 0
collapse = 0
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is built from it, as an index would get them."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


def _run(*command: str, cwd: Path, **more: str) -> str:
    """Away from the clone: neither its folder, nor pytest's options and plug-ins, nor the user's store come along."""
    foreign = ("PYTHONPATH", "PYTEST_", "GAUNTLET_", "COVERAGE_", "COV_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | more
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Installed:
    """A virtual environment with the wheel; the dependencies are those of the running environment."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.environment = folder / "environment"
        self.empty = folder / "empty"
        self.empty.mkdir()
        self.store = folder / "store"
        venv.create(self.environment, symlinks=os.name != "nt")
        self._scripts = self.environment / ("Scripts" if os.name == "nt" else "bin")
        site = Path(self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        # A line in a .pth file adds the folder and doesn't read the .pth files in it, such as an editable install's.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        pip = (sys.executable, "-m", "pip", "--python", str(self._scripts / "python"))
        # The running environment may hold this very version, which would count as installed.
        _run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel), cwd=folder)

    def run(self, command: str, *arguments: str) -> str:
        return _run(
            str(self._scripts / command),
            *arguments,
            cwd=self.empty,
            GAUNTLET_STORE=str(self.store),
            OMP_NUM_THREADS="1",
        )

    def pytest(self, *arguments: str) -> str:
        return self.run("python", "-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "gauntlet.bench", *arguments)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("stranger"), wheel)


def _sources(*folders: str) -> set[str]:
    """Files of the clone that ship, with slashes."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix != ".pyc"}


def test_the_wheel_holds_the_engine_and_every_plug_in(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {name.removeprefix("src/") for name in _sources("src/gauntlet")}
    expected |= {f"gauntlet/{name}" for name in _sources(*PARTS)}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"gauntlet/py.typed", "gauntlet/bench/quick.toml", "gauntlet/reports/html.jinja"} <= expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_takes_no_name_but_its_own(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gauntlet"}


def test_the_sdist_holds_what_it_takes_to_test_and_to_build(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    alone = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "conftest.py", "tox.ini"}
    assert alone | _sources("src", "tests", "docs", *PARTS) <= names
    tops = {name.split("/")[0] for name in names if name} - {".gitignore"}
    assert tops == alone | {"CONTRIBUTING.md", "PKG-INFO", "src", "tests", "docs", "benchmarks", *PARTS}


def test_what_is_imported_is_the_wheel(installed: Installed) -> None:
    code = (
        "import gauntlet; from gauntlet.plugin import Kind; from gauntlet.registry import Registry\n"
        "found = Registry.discover()\n"
        "print(gauntlet.__file__, *{cls.__module__ for kind in Kind for cls in found.classes(kind).values()})"
    )
    file, *modules = installed.run("python", "-c", code).split()
    assert Path(file).is_relative_to(installed.environment)
    assert {"gauntlet.attacks.badnets", "gauntlet.reports.html"} <= set(modules)
    assert all(module.startswith("gauntlet.") for module in modules)


def test_the_command(installed: Installed) -> None:
    assert "usage: gauntlet" in installed.run("gauntlet", "--help")
    listed = installed.run("gauntlet", "list")
    for name in ("adversarial_embedding", "spatial_smoothing", "simple_cnn", "parquet:PATH", "leaderboard.html"):
        assert name in listed
    assert "quick" in installed.run("python", "-m", "gauntlet", "list", "suites")


def test_the_suites_run_from_anywhere(installed: Installed) -> None:
    assert "digits-simple_cnn-badnets-fine_tuning" in installed.pytest("--plan")
    (installed.empty / "tiny.toml").write_text(SUITE, encoding="utf-8")
    output = installed.pytest("--suite=tiny.toml", "-k", "badnets-none")
    assert "1 passed, 1 deselected" in output
    assert "commit: release" in output
    assert {path.name for path in installed.empty.glob("results/*/*")} >= {"records.jsonl", "leaderboard.html"}
