from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gauntlet.recall import code_state, recalled

QUESTION = {"what": "a number"}


class Maker:
    """Counts how often it is asked."""

    def __init__(self, answer: object = 7) -> None:
        self.answer = answer
        self.asked = 0

    def __call__(self) -> object:
        self.asked += 1
        return self.answer


def kept(store: Path) -> list[Path]:
    return sorted((store / ".recalled").glob("*"))


def test_an_answer_is_made_once_for_each_question(tmp_path: Path) -> None:
    maker = Maker({"rows": [1, 2]})
    for _ in range(3):
        assert recalled(tmp_path, QUESTION, maker) == {"rows": [1, 2]}
    assert maker.asked == 1
    recalled(tmp_path, QUESTION | {"code": [["a.py", 1, 2]]}, maker)
    assert maker.asked == 2
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["", "{", "\udcff"])
def test_a_damaged_answer_is_made_anew(damage: str, tmp_path: Path) -> None:
    recalled(tmp_path, QUESTION, Maker())
    (path,) = kept(tmp_path)
    path.write_bytes(damage.encode(errors="surrogateescape"))
    assert recalled(tmp_path, QUESTION, Maker(8)) == 8
    assert json.loads(path.read_text()) == 8


def test_a_store_that_cant_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    maker = Maker()
    assert [recalled(tmp_path / "file", QUESTION, maker) for _ in range(2)] == [7, 7]
    assert maker.asked == 2


def test_what_fails_keeps_nothing(tmp_path: Path) -> None:
    def fail() -> object:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        recalled(tmp_path, QUESTION, fail)
    assert kept(tmp_path) == []


def test_the_oldest_answers_go(tmp_path: Path) -> None:
    for number in range(70):
        recalled(tmp_path, QUESTION | {"number": number}, Maker(number))
        newest = max(kept(tmp_path), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, ns=(number, number))
    assert len(kept(tmp_path)) == 64
    assert {json.loads(path.read_text()) for path in kept(tmp_path)} == set(range(6, 70))


def test_the_state_of_the_code_covers_engine_plug_ins_and_what_lies_beside_them(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("")
    (tmp_path / "unrelated.txt").write_text("")
    first = code_state([plugin])
    names = {Path(str(entry[0])).name for entry in first["files"]}  # type: ignore[attr-defined]
    assert {"recall.py", "pgd.py", "badnets.py", "fine_tuning.py", "le_net.py", "mine.py"} <= names
    assert "unrelated.txt" not in names
    assert code_state([plugin]) == first
    (tmp_path / "helper.py").write_text("x = 1")
    with_helper = code_state([plugin])
    assert with_helper != first
    plugin.write_text("x = 1")
    assert code_state([plugin]) not in (first, with_helper)
    assert code_state([]) != first
