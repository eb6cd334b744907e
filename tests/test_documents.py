"""The examples of the README and the guides, copied into files as a reader would, run."""

from __future__ import annotations

import re
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest

from gauntlet.attack import Family
from gauntlet.defense import Stage
from gauntlet.errors import SettingError
from gauntlet.expansion import slug
from gauntlet.listing import entries
from gauntlet.options import Options
from gauntlet.plugin import Kind
from gauntlet.records import Status
from gauntlet.registry import Registry
from gauntlet.session import open_session
from tests.sample_views import facts

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "short_fine_tuning": "README.md",
    "stripe": "docs/attacks.md",
    "brightness": "docs/defenses.md",
    "near_the_mean": "docs/defenses.md",
    "far_from_clean": "docs/defenses.md",
    "two_layers": "docs/models.md",
    "stripes": "docs/tasks.md",
}
SUITE = """
tasks = ["stripes"]
seeds = [0]
reserve = 10
architectures = ["two_layers"]
attacks = ["stripe"]
defenses = ["brightness", "near_the_mean", "far_from_clean", { name = "short_fine_tuning", epochs = 1 }]
[recipe]
epochs = 1
"""


def _plugin(document: str, name: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if f"class {name.title().replace('_', '')}(" in block]
    return str(found)


def test_the_plug_ins_of_the_guides_run_together(tmp_path: Path) -> None:
    files = []
    for name, document in EXAMPLES.items():
        files.append(tmp_path / f"{name}.py")
        files[-1].write_text(_plugin(document, name), encoding="utf-8")
    suite = tmp_path / "examples.toml"
    suite.write_text(SUITE, encoding="utf-8")
    options = Options(suites=(str(suite),), plugins=tuple(files), store=tmp_path / "store", device="cpu")
    session = open_session(options, pytest.fail)
    records = [session.attempt(case) for case in session.cases]
    assert [(record.status, error) for record, error in records] == [(Status.PASS, None)] * 5


def test_the_links_of_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} points to {target}"


def test_the_documents_that_the_code_cites_are_there() -> None:
    folders = ("src", "attacks", "defenses", "models", "tasks", "reports", "bench", "benchmarks")
    written = {str(report.filename) for report in Registry.discover().classes(Kind.REPORT).values()}
    files = [file for folder in folders for kind in ("*.py", "*.toml") for file in (ROOT / folder).rglob(kind)]
    for file in files:
        for cited in re.findall(r"[\w/-]+\.md\b", file.read_text(encoding="utf-8")):
            name = cited.rpartition("/")[2]
            assert name in written or (ROOT / name).exists() or (ROOT / "docs" / name).exists(), f"{file} cites {cited}"


def test_the_guide_lists_all_families_and_stages_as_marks() -> None:
    text = (ROOT / "docs/suites.md").read_text(encoding="utf-8")
    ((families, stages),) = re.findall(r"attack's family \((.*?)\) and the defense's stage\s\((.*?)\)", text, re.DOTALL)
    assert re.findall(r"`(\w+)`", families) == [str(family) for family in Family]
    assert re.findall(r"`(\w+)`", stages) == [slug(stage) for stage in Stage]


def _column(document: str, heading: str) -> dict[str, str]:
    """What a guide's first table says of each plug-in under a heading."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    rows = list(takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), lines)))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    place = cells[0].index(heading)
    return {row[0].strip("`"): row[place] for row in cells[1:] if row[0].startswith("`")}


def test_the_defenses_guide_names_the_least_reserve() -> None:
    listed = entries(Kind.DEFENSE, Registry.discover())
    assert _column("docs/defenses.md", "clean reserve") == {entry.name: entry.reserve for entry in listed}


def test_the_models_guide_names_the_least_side() -> None:
    models = Registry.discover().classes(Kind.MODEL)
    sides = _column("docs/models.md", "least side")
    assert sides.keys() == models.keys()
    for name, least in sides.items():
        if least != "of the file":
            model, side = models[name](), int(least)
            model.check(facts((3, side, side)))
            if side > 1:
                with pytest.raises(SettingError, match=f"at least {side}x{side} pixels"):
                    model.check(facts((3, side - 1, side - 1)))
