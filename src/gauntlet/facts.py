"""What everybody may know of a task: its form and its sizes, never its test images."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TaskFacts"]


@dataclass(frozen=True)
class TaskFacts:
    """name: as the user wrote it (`parquet:PATH` keeps its path). shape: (C, H, W). train_counts: images of each
    class in the attacker's training data. reserve_counts: the largest clean reserve a defender may ask for, by
    class. test_counts: by class. hash: SHA-256 of all tensors and splits and of the numbers of classes and of second
    labels: what hangs on the task hangs on it alone. provenance: where the data came from. auxiliary_names: one for
    each value of the images' second label, empty where they have none. doubts: what looks as if the data were read
    otherwise than they are meant.
    """

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    reserve_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    hash: str
    provenance: str
    auxiliary_names: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def train_size(self) -> int:
        """Images in the attacker's training data."""
        return sum(self.train_counts)

    @property
    def reserve_size(self) -> int:
        """The largest clean reserve."""
        return sum(self.reserve_counts)

    @property
    def test_size(self) -> int:
        """Images in the evaluator's test data."""
        return sum(self.test_counts)
