"""The base of every model plug-in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from gauntlet.errors import missing
from gauntlet.facts import TaskFacts

__all__ = ["Architecture"]


@dataclass(frozen=True)
class Architecture:
    """A network architecture. feature_layer and last_conv are module paths inside what `build` returns. reads: suffixes
    of the model files that describe themselves and that its `path` takes, as `.h5`. describes: suffixes of files that
    its `path` takes as well, without weights: networks to train, not to judge.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    describes: ClassVar[tuple[str, ...]] = ()
    feature_layer: ClassVar[str]
    last_conv: ClassVar[str | None]

    def check(self, facts: TaskFacts) -> None:
        """Raise SettingError, with the legal range, when this architecture can't take the task's images."""

    def declared(self) -> tuple[tuple[int, int, int], int] | None:
        """The (C, H, W) and the number of classes that a model's own file declares; None for a form that fits any."""
        return None

    def is_trained(self) -> bool:
        """Whether what `build` returns has been trained as a whole: only then can it be handed over as it is."""
        return False

    def portable(self, folder: Path) -> Architecture:  # noqa: ARG002
        """The same architecture without need of any file outside `folder`, into which it may write what it needs."""
        return self

    def origin(self) -> str:
        """Where the initial weights come from, as the record says it."""
        return "from scratch"

    def taps(self, body: nn.Module) -> tuple[str, str | None]:  # noqa: ARG002
        """The module paths of the feature layer and of the last convolution inside `body`, which `build` returned."""
        return self.feature_layer, self.last_conv

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """A module from normalised images of `shape` (C, H, W) to logits, initialised from torch's generator."""
        raise NotImplementedError(missing(self, "build"))
