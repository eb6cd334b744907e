"""The examples of the README and the guides, copied into files as a reader would, run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gauntlet.options import Options
from gauntlet.records import Status
from gauntlet.session import open_session

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
