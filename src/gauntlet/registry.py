"""Finds the plug-ins: the folders of this project, entry points of other packages, and files named by the user.

Finding needs no import: a plug-in's public name is its module's name. A module is imported when it is asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import gauntlet
from gauntlet import settings as checked
from gauntlet.errors import GauntletError, SettingError, nearest
from gauntlet.plugin import Kind, kind_of
from gauntlet.task import TaskSource

__all__ = ["Registry"]

# What is loaded runs as it was loaded, even when its file changes afterwards: such a file is hashed once.
_digests: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class _Source:
    """A module that may hold a plug-in of `kind`. where: its file or entry point, for messages."""

    kind: Kind
    name: str
    module: str
    where: str

    def load(self) -> type[Any] | None:
        """The marked class; None for a helper module."""
        found = _marked(_imported(self.module, self.where), self.kind)
        if len(found) > 1:
            names = " and ".join(cls.__name__ for cls in found)
            raise SettingError(f"{self.where} holds two {self.kind}, {names}; legal: one a file, named like the file")
        for cls in found:
            checked.check_types(cls, f"the plug-in {self.where}")
        return found[0] if found else None


@dataclasses.dataclass(frozen=True)
class Registry:
    """All plug-ins by kind and name. Make one with `discover`.

    files: name and SHA-256 (hex), as it was loaded, of each file that was named beside the project's own.
    """

    _sources: Mapping[tuple[Kind, str], _Source]
    files: tuple[tuple[str, str], ...] = ()

    @classmethod
    def discover(cls, plugins: Sequence[Path] = ()) -> Registry:
        """The plug-ins of the project, of installed packages, and of the files `plugins`.

        Raises SettingError, naming both places, when two of a kind have one name; GauntletError, naming the file and
        the cause, when a module can't be imported.
        """
        sources: dict[tuple[Kind, str], _Source] = {}
        named = list(_in_files(sorted({path.resolve() for path in plugins})))
        for source in [*_in_folders(), *_in_packages(), *named]:
            known = sources.get((source.kind, source.name))
            if known is None or known.load() is None:
                sources[source.kind, source.name] = source
            elif known.where != source.where and source.load() is not None:
                raise SettingError(
                    f"two {source.kind} are named {source.name}: {known.where} and {source.where}; rename one file"
                )
        files = {(Path(source.where).name, _digests[sys.modules[source.module]]) for source in named}
        return cls(sources, tuple(sorted(files)))

    def classes(self, kind: Kind) -> dict[str, type[Any]]:
        """Every plug-in of a kind by name, in alphabetical order. Imports them all."""
        found = {source.name: source.load() for source in self._sources.values() if source.kind is kind}
        return {name: cls for name, cls in sorted(found.items()) if cls is not None}

    def find(self, kind: Kind, name: str) -> type[Any] | None:
        """The plug-in class of that name; None where there is none."""
        source = self._sources.get((kind, name))
        return source.load() if source is not None else None

    def get(self, kind: Kind, name: str) -> type[Any]:
        """The plug-in class of that name; UnknownNameError lists the nearest names."""
        cls = self.find(kind, name)
        if cls is None:
            raise nearest(name, self.classes(kind), kind.name.lower())
        return cls

    def build(self, kind: Kind, name: str, settings: Mapping[str, object]) -> Any:
        """A plug-in with checked settings; SettingError names the plug-in, the setting and the legal range."""
        return checked.build(self.get(kind, name), settings, f"{kind.name.lower()} {name}")

    def task(self, text: str, settings: Mapping[str, object] | None = None) -> TaskSource:
        """The task that a user wrote as `digits` or `parquet:PATH`, with its other settings."""
        name, colon, path = text.partition(":")
        cls = self.get(Kind.TASK, name)
        field = {field.name: field for field in dataclasses.fields(cls) if field.init}.get("path")
        if colon and field is None:
            raise SettingError(f"task {text}: {name} takes no path; write {name}")
        given = {**(settings or {}), **({"path": path} if path else {})}
        if (colon and not path) or (field is not None and _required(field) and not given.get("path")):
            raise SettingError(f"task {text}: the path is missing; write {name}:PATH")
        source: TaskSource = self.build(Kind.TASK, name, given)
        return source


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _in_folders() -> Iterator[_Source]:
    """The project's own: below the engine in a wheel, at the root of a clone or of an editable install."""
    engine = Path(gauntlet.__file__).resolve().parent
    for kind in Kind:
        inside, beside = engine / kind, engine.parents[1] / kind
        folder = inside if inside.is_dir() else beside
        if not (folder / "__init__.py").is_file():
            continue
        package = kind.value if folder == beside and _is_at(kind.value, folder) else f"gauntlet.{kind}"
        if not _is_at(package, folder):
            _mount(package, folder)
        for module in pkgutil.iter_modules([str(folder)]):
            if not module.name.startswith("_") and not module.ispkg:
                yield _Source(kind, module.name, f"{package}.{module.name}", str(folder / f"{module.name}.py"))


def _in_packages() -> Iterator[_Source]:
    """Other people's, by entry point: its value is the plug-in's module."""
    for kind in Kind:
        for point in entry_points(group=f"gauntlet.{kind}"):
            where = f"the entry point {point.name} = {point.value} of {point.dist.name if point.dist else 'a package'}"
            yield _Source(kind, point.module.rpartition(".")[2], point.module, where)


def _in_files(files: Sequence[Path]) -> Iterator[_Source]:
    """The user's: a file may hold one plug-in of each kind, so that it is imported to find out."""
    engine = Path(gauntlet.__file__).resolve().parent
    own = {root / kind for root in (engine, engine.parents[1]) for kind in Kind}
    for path in files:
        if path.parent in own and path.is_file():
            continue
        if path.suffix != ".py" or not path.stem.isidentifier() or not path.is_file():
            raise SettingError(f"--plugin {path}: no such Python file; legal: a file whose name is NAME.py")
        # The folder's hash keeps two files of one name apart; the last part stays the public name.
        package = f"gauntlet_plugin_{hashlib.sha256(str(path.parent).encode()).hexdigest()[:12]}"
        if package not in sys.modules:
            _mount(package, path.parent)
        name = f"{package}.{path.stem}"
        module = _imported(name, str(path))
        _digests.setdefault(module, hashlib.sha256(path.read_bytes()).hexdigest())
        kinds = [kind for kind in Kind if _marked(module, kind)]
        if not kinds:
            raise SettingError(f"--plugin {path}: it holds no class marked @attack, @defense, @model, @task or @report")
        for kind in kinds:
            yield _Source(kind, path.stem, name, str(path))


def _is_at(package: str, folder: Path) -> bool:
    """Whether importing `package` would yield the one in `folder`, and not somebody else's of the same name."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    places = spec.submodule_search_locations if spec is not None else None
    return any(Path(place).resolve() == folder for place in places or ())


def _mount(package: str, folder: Path) -> None:
    """Make the files of `folder` importable as modules of `package`, wherever sys.path points."""
    spec = ModuleSpec(package, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[package] = importlib.util.module_from_spec(spec)


def _imported(module: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise GauntletError(f"the plug-in {where} can't be imported: {type(error).__name__}: {error}") from error


def _marked(module: ModuleType, kind: Kind) -> list[type[Any]]:
    """The plug-in classes that the module itself defines, not those that it imports."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return [cls for cls in dict.fromkeys(classes) if cls.__module__ == module.__name__ and kind_of(cls) is kind]
