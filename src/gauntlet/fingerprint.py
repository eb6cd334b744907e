"""Fingerprints of code: a step whose code changed gets another key, so that no old result passes for a new one.

Read from the source alone: nothing is imported to find out what it imports. What isn't written as an import is not
seen: files that code reads, modules whose names it computes, and compiled modules that no distribution installed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

import gauntlet
from gauntlet.plugin import Kind

__all__ = ["fingerprint", "versions"]

_ENGINE = "gauntlet"
_FOLDERS = frozenset(kind.value for kind in Kind)
_FILE_PLUGIN = re.compile(r"gauntlet_plugin_[0-9a-f]+")
_METADATA = frozenset({"__all__", "__version__"})
_INSTALLED = frozenset({"site-packages", "dist-packages"})
# The first three stand in `versions`; pydantic checks settings, and those stand in every key themselves.
_KNOWN = frozenset({"torch", "numpy", "PIL", "pydantic"})


@dataclass(frozen=True)
class _Source:
    """digest: of a module's normalised tree. imports: the modules to follow, its own packages included. libraries:
    the distributions that it imports, `scipy 1.17.1`.
    """

    digest: str
    imports: tuple[str, ...]
    libraries: tuple[str, ...] = ()


# What is loaded runs as it was loaded, even when its file changes afterwards: such a module is read once.
_loaded: WeakKeyDictionary[ModuleType, _Source] = WeakKeyDictionary()
# And so is the whole closure, while every module of it is the one that was loaded then.
_closures: dict[tuple[str, ...], tuple[dict[str, ModuleType], str]] = {}


@cache
def versions() -> dict[str, str]:
    """The versions of the libraries whose arithmetic a result depends on."""
    import numpy
    import PIL
    import torch

    # As they call themselves: their builds (+cpu, +cu132) round differently, and the package's metadata hides them.
    return {"torch": str(torch.__version__), "numpy": numpy.__version__, "pillow": PIL.__version__}


def fingerprint(*modules: str) -> str:
    """SHA-256 over the code of `modules` and of every module that they import, transitively.

    Comments, docstrings, layout, `__all__`, `__version__` and what only a type checker reads don't count. A module of
    the engine, of a plug-in folder or of the package that imports it counts by its code, and so does any other that
    neither Python nor an installed distribution brings. A distribution counts by its version where a plug-in, or what
    that imports, imports it. A module counts under one name in a clone, in a wheel and wherever a plug-in file lies.
    Raises ModuleNotFoundError for one of `modules` without Python source.
    """
    if modules in _closures:
        loaded, known = _closures[modules]
        if all(sys.modules.get(name) is module for name, module in loaded.items()):
            return known
    found: dict[str, _Source] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = _source(module)
            waiting += found[module].imports
    lines = {f"{_public(module)} {source.digest}" for module, source in found.items()}
    lines |= {library for source in found.values() for library in source.libraries}
    result = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    there = {name: sys.modules[name] for name in found if name in sys.modules}
    if len(there) == len(found):
        _closures[modules] = there, result
    return result


def _source(module: str) -> _Source:
    loaded = sys.modules.get(module)
    if loaded is not None and loaded in _loaded:
        return _loaded[loaded]
    file = _file_of(module)
    if file is None:
        raise ModuleNotFoundError(f"module {module} has no Python source to take a fingerprint of", name=module)
    state = file.stat()
    source = _read(module, file, state.st_mtime_ns, state.st_size)
    if loaded is not None:
        _loaded[loaded] = source
    return source


@cache
def _read(module: str, file: Path, _modified: int, _size: int) -> _Source:
    content = file.read_bytes()
    try:
        tree = _Normaliser().visit(ast.parse(content, str(file)))
    except SyntaxError:
        # It can't be imported either: somebody tries it, or it is for another Python.
        return _Source(hashlib.sha256(content).hexdigest(), ())
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    named = {module, *_imported(tree, package)}
    wanted = {part for name in named for part in _with_packages(name)} - {module}
    own = {name for name in wanted if _is_projects(name, module)}
    # The engine's own requirements are installed with it, wherever that is.
    others = _Others() if _is_engines(module) else _sorted_out({name.partition(".")[0] for name in wanted - own})
    own |= {name for name in wanted if name.partition(".")[0] in others.loose}
    imports = tuple(name for name in sorted(own) if _file_of(name) is not None)
    return _Source(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports, others.libraries)


class _Normaliser(ast.NodeTransformer):
    """Drops what has no effect on a result."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        test = node.test
        name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""
        return node.orelse if name == "TYPE_CHECKING" else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        return None if names and names <= _METADATA else self.generic_visit(node)


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Absolute dotted names; that of `from a import b` may be a module or only something inside `a`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_packages(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _public(module: str) -> str:
    """One name for a module however it is installed: `attacks.badnets`, and `mine` for a plug-in file mine.py."""
    top, _, rest = module.partition(".")
    if top == _ENGINE and rest.partition(".")[0] in _FOLDERS:
        return rest
    return rest if _FILE_PLUGIN.fullmatch(top) else module


def _is_engines(module: str) -> bool:
    return _public(module).partition(".")[0] == _ENGINE


@dataclass(frozen=True)
class _Others:
    """Top-level modules that aren't the project's. loose: those that neither Python nor a distribution brings.
    libraries: names and versions of the distributions that bring the rest.
    """

    loose: frozenset[str] = frozenset()
    libraries: tuple[str, ...] = ()


def _sorted_out(tops: Iterable[str]) -> _Others:
    loose: set[str] = set()
    libraries: set[str] = set()
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    for top in tops:
        place = None if top in _KNOWN else _place_of(top)
        if place is None:
            continue
        is_installation = _is_installation(place)
        found = _distributions_of(top) if is_installation else ()
        libraries.update(found)
        if not found and (is_installation or not place.is_relative_to(standard)):
            loose.add(top)
    return _Others(frozenset(loose), tuple(sorted(libraries)))


@cache
def _is_installation(folder: Path) -> bool:
    """Whether distributions are installed there; `pip install --target` takes any folder."""
    return not _INSTALLED.isdisjoint(folder.parts) or next(folder.glob("*.dist-info"), None) is not None


@cache
def _distributions_of(top: str) -> tuple[str, ...]:
    """Name and version of each distribution that installed files of the top-level module."""
    own = re.compile(rf"^{re.escape(top)}(?:[/.,]|$)", re.MULTILINE)
    return tuple(sorted({f"{each.name} {each.version}" for each in distributions() if own.search(_contents(each))}))


def _contents(distribution: Distribution) -> str:
    # Reading them as text takes a tenth of the time of importlib's packages_distributions().
    return "\n".join(distribution.read_text(name) or "" for name in ("top_level.txt", "RECORD"))


def _is_projects(module: str, importer: str) -> bool:
    top = module.partition(".")[0]
    if top in (_ENGINE, importer.partition(".")[0]):
        return True
    root = Path(gauntlet.__file__).resolve().parents[2]
    return top in _FOLDERS and root / top in _folders_of(top)


def _file_of(module: str) -> Path | None:
    """The source file of a module or package; None for what is no module, or has no source."""
    spec = _spec_of(module)
    parent, _, name = module.rpartition(".")
    if spec is None:
        candidates = [folder / name for folder in _folders_of(parent)] if parent else []
        files = [file for path in candidates for file in (path / "__init__.py", path.with_name(f"{name}.py"))]
    elif spec.submodule_search_locations is not None:
        files = [Path(place) / "__init__.py" for place in spec.submodule_search_locations]
    else:
        files = [Path(spec.origin or "")]
    return next((file.resolve() for file in files if file.suffix == ".py" and file.is_file()), None)


def _place_of(top: str) -> Path | None:
    """The folder that a top-level module or package lies in; None for one that is built in, or that isn't there."""
    spec = _spec_of(top)
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else [])]
    return Path(places[0]).resolve().parent if places else None


def _folders_of(package: str) -> list[Path]:
    spec = _spec_of(package)
    if spec is not None:
        return [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    parent, _, name = package.rpartition(".")
    folders = [folder / name for folder in _folders_of(parent)] if parent else []
    return [folder for folder in folders if folder.is_dir()]


def _spec_of(module: str) -> ModuleSpec | None:
    """The import system's own answer for what is loaded and for top-level names: looking deeper would import."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        return loaded.__spec__
    if "." in module:
        return None
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
