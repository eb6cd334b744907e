"""A task's data as the engine holds it: prepared once, mapped from the store ever after."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gauntlet import keys
from gauntlet.errors import DataError, SettingError
from gauntlet.facts import TaskFacts
from gauntlet.fingerprint import fingerprint, versions
from gauntlet.guard import Sealed, forbid_players
from gauntlet.images import ImageSet
from gauntlet.plugin import name_of
from gauntlet.prepared import FactsCodec, Prepared, PreparedCodec, Split, prepare_raw
from gauntlet.settings import values
from gauntlet.store import Obtained, Store
from gauntlet.task import LoadContext, TaskSource

__all__ = ["TaskData", "facts", "prepare"]

Report = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class TaskData:
    """training: the attacker's. reserve_pool: the defender's largest clean reserve. test: the evaluator's alone.

    mean, std: of the attacker's training data by channel, of values in [0, 1]. Each set has a base of its own, so
    that none leads to another's images.
    """

    facts: TaskFacts
    training: ImageSet
    reserve_pool: ImageSet
    test: Sealed[ImageSet]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def reserve(self, budget: int) -> ImageSet:
        """`budget` clean images, stratified; a smaller reserve lies inside a larger one. SettingError when the
        pool is smaller.
        """
        largest = len(self.reserve_pool)
        if not 0 <= budget <= largest:
            raise SettingError(f"task {self.facts.name}: reserve = {budget} is out of range; legal: 0 to {largest}")
        return self.reserve_pool.subset(torch.arange(budget))


def prepare(
    source: TaskSource, name: str, store: Store, context: LoadContext, report: Report | None = None
) -> TaskData:
    """The data of `source`, which the user calls `name`; `report` is told of the slow first time.

    DataError when it can't be had, LeakError when an attack or a defense asks for it.
    """
    forbid_players(f"the data of task {name}")
    spec = _spec(source, name)
    obtained = _obtain(source, name, store, context, spec, report)
    made = obtained.value
    if not obtained.cached:
        store.obtain("facts", keys.key(spec), spec, FactsCodec(), lambda: made.facts, recompute=True)
    test = Sealed(f"the test images of task {name}", _image_set(made.test))
    return TaskData(made.facts, _image_set(made.training), _image_set(made.reserve), test, made.mean, made.std)


def facts(source: TaskSource, name: str, store: Store, context: LoadContext, report: Report | None = None) -> TaskFacts:
    """What everybody may know of the task, without opening its images where it was prepared before."""
    forbid_players(f"the data of task {name}")
    spec = _spec(source, name)

    def make() -> TaskFacts:
        return _obtain(source, name, store, context, spec, report).value.facts

    return store.obtain("facts", keys.key(spec), spec, FactsCodec(), make).value


def _obtain(
    source: TaskSource,
    name: str,
    store: Store,
    context: LoadContext,
    spec: Mapping[str, object],
    report: Report | None,
) -> Obtained[Prepared]:
    def make() -> Prepared:
        tell = report or _silent
        tell(f"preparing task {name} for the first time")
        start = time.perf_counter()
        made = prepare_raw(source.load(context), name)
        size = made.facts.train_size + made.facts.reserve_size + made.facts.test_size
        tell(f"prepared task {name}: {size:,} images in {time.perf_counter() - start:.1f} s")
        return made

    return store.obtain("tasks", keys.key(spec), spec, PreparedCodec(), make)


def _silent(_line: str) -> None:
    return None


def _spec(source: TaskSource, name: str) -> dict[str, object]:
    """What the prepared data depend on: the code, the settings, and the state of the user's own files."""
    return {
        "name": name,
        "source": name_of(source),
        "settings": values(source),
        "files": keys.key({"files": [_state(path) for path in source.files()]}),
        "code": fingerprint(type(source).__module__, "gauntlet.prepared"),
        "versions": versions(),
    }


def _state(path: Path) -> list[object]:
    """A cheap stand-in for the content: hashing gigabytes at every start would cost more than it saves."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    return [str(path.absolute()), state.st_size, state.st_mtime_ns]


def _image_set(part: Split) -> ImageSet:
    return ImageSet.of(part.images, part.labels, part.auxiliary)
