from __future__ import annotations

import os
from pathlib import Path

import pytest

from gauntlet.files import fault, is_utf8


def test_a_file_is_one_and_a_folder_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("file")

    assert fault(tmp_path / "file") == fault(tmp_path / "link") == ""
    assert fault(tmp_path, folder=True) == ""


def test_what_is_no_file_is_called_by_its_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    due = {
        tmp_path: "it is a folder; due: a file",
        tmp_path / "pipe": "it is a named pipe; due: a file",
        Path("/dev/null"): "it is a device; due: a file",
        tmp_path / "loop": "the link leads back to itself; due: a file",
        tmp_path / "dangling": "the link leads to nowhere, which is not there",
        tmp_path / "absent": "no such file",
        tmp_path / "pipe" / "inside": "no such file",
        tmp_path / "a\0b": "no such file",
    }

    assert {path: fault(path) for path in due} == due
    assert fault(tmp_path / "pipe", folder=True) == "it is a named pipe; due: a file or a folder"
    assert fault(tmp_path / "absent", folder=True) == "no such file or folder"


@pytest.mark.parametrize(("name", "due"), [("plain", True), ("ünïcode", True), (os.fsdecode(b"c\xff.h5"), False)])
def test_a_name_may_be_any_bytes(name: str, due: bool) -> None:
    assert is_utf8(name) is due
