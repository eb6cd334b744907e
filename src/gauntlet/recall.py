"""Answers that are dear to find: kept as JSON under the state of all code that could change them. Loads no torch.

They only spare time: whatever runs is found anew, so that a stale answer can't become a result.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gauntlet
from gauntlet.keys import key
from gauntlet.plugin import Kind

__all__ = ["code_state", "file_states", "forget", "recalled"]

_FOLDER = ".recalled"
"""Below the store; the dot keeps it apart from the entries."""
_MOST = 64
"""Answers that are kept; the oldest go."""


def recalled(store: Path, question: Mapping[str, object], make: Callable[[], Any]) -> Any:
    """The kept answer (a JSON value) to `question`, or that of `make`, which is then kept if the store can be written.

    What can't be read is made anew; what `make` raises propagates and keeps nothing.
    """
    path = store / _FOLDER / f"{key(question)}.json"
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    answer = make()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(answer))
        _forget(path.parent)
    return answer


def forget(store: Path) -> None:
    """Drop every kept answer: one has turned out to be stale."""
    with suppress(OSError):
        for path in (store / _FOLDER).glob("*"):
            path.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _forget(folder: Path) -> None:
    for path in sorted(folder.glob("*.json"), key=lambda each: each.stat().st_mtime_ns)[:-_MOST]:
        path.unlink(missing_ok=True)


def code_state(plugins: Iterable[Path]) -> dict[str, object]:
    """What a change of the engine, of any plug-in, or of the environment changes: names, sizes and times, no content.

    plugins: the files that the user named; the modules beside them count, since they may import them.
    """
    engine = Path(gauntlet.__file__).resolve().parent
    beside = [engine.parents[1] / kind for kind in Kind]
    named = sorted({path.resolve().parent for path in plugins})
    files = [*engine.rglob("*.py"), *_modules(beside), *_modules(named)]
    points = [point for kind in Kind for point in entry_points(group=f"gauntlet.{kind}")]
    files += [path for point in points for path in _package_of(point.module)]
    return {
        "files": file_states(files),
        "plugins": [str(path.resolve()) for path in plugins],
        "packages": [[point.name, point.value, point.dist.version if point.dist else ""] for point in points],
        "versions": [gauntlet.__version__, platform.python_version(), version("pydantic"), version("torch")],
    }


def file_states(files: Iterable[Path]) -> list[list[object]]:
    """Name, size and time of each file."""
    return [_state(path) for path in sorted(set(files))]


def _package_of(module: str) -> Iterator[Path]:
    """All files of the top-level package, or the module, that another project's plug-in lies in."""
    spec = find_spec(module.partition(".")[0])
    for place in spec.submodule_search_locations or () if spec is not None else ():
        yield from Path(place).rglob("*.py")
    if spec is not None and spec.origin:
        yield Path(spec.origin)


def _modules(folders: Iterable[Path]) -> Iterator[Path]:
    return (path for folder in folders for path in folder.glob("*.py"))


def _state(path: Path) -> list[object]:
    with suppress(OSError):
        state = path.stat()
        return [str(path), state.st_size, state.st_mtime_ns]
    return [str(path)]
