"""Curves of trainings as they run, and what came of them: who wants them gives a recorder; nobody does by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gauntlet.records import Counts, SeedScore

__all__ = ["Curves", "Recorder", "Unseen", "of_epoch", "unrecorded", "write_scores"]


class Curves(Protocol):
    """Where the numbers of one training go."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Named numbers as of that many steps; those that are not finite are gaps."""
        ...


class Recorder(Protocol):
    """Opens the curves of one training."""

    def __call__(self, *where: str) -> AbstractContextManager[Curves]:
        """where: case, seed, purpose."""
        ...


class Unseen:
    """Curves that nobody looks at."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        pass


@contextmanager
def unrecorded(*_where: str) -> Iterator[Curves]:
    """The recorder that records nothing."""
    yield Unseen()


def of_epoch(
    loss: float, validation_loss: float, rates: Sequence[float], reported: Mapping[str, float]
) -> dict[str, float]:
    """An epoch's numbers by the names of Backdoors 101, and the learning rate of each group of parameters."""
    named = {f"Train/Learning_rate{f'_{place}' if place else ''}": rate for place, rate in enumerate(rates)}
    parts = {f"Train/{name}": value for name, value in reported.items()}
    return {"Train/Loss_total": loss, "Loss_value": loss, "Validation/Loss_value": validation_loss, **named, **parts}


def write_scores(recorder: Recorder, score: SeedScore) -> None:
    """The accuracies of one seed in percent: on clean test images, and the ASR of all backdoors and of each."""
    values = {"Test_backdoor_False/Accuracy_Top-1": _percent([score.clean])}
    found = {backdoor.name: backdoor.asr for backdoor in score.backdoors}
    if found:
        values["Test_backdoor_True/Accuracy_Top-1"] = _percent(list(found.values()))
    if len(found) > 1:
        each = {f"Test_backdoor_True/{name}/Accuracy_Top-1": _percent([counts]) for name, counts in found.items()}
        values |= each
    with recorder("test") as curves:
        curves.write(0, values)


def _percent(counts: Sequence[Counts]) -> float:
    n = sum(part.n for part in counts)
    return 100 * sum(part.hits for part in counts) / n if n else float("nan")
