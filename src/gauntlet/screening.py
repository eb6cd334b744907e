"""Input detection as the engine runs it: a threshold from clean images alone, and what the scores are worth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gauntlet.companions import Mixture, mixed_up
from gauntlet.defense import InputDetector, Scorer
from gauntlet.errors import GauntletError
from gauntlet.guard import Role
from gauntlet.images import chunks, to_float
from gauntlet.plugin import name_of
from gauntlet.records import Counts
from gauntlet.turns import expected, turn
from gauntlet.views import DefenderView, Draws

__all__ = ["Screen", "above", "auroc", "screen_of", "threshold"]

PART = 1000
"""Images that a detector gets at once."""

_OF_THE_SPREAD, _OF_THE_SCORE = 0.05, 1 / 1024
"""By how much an image's score may differ in another batch: sizes choose kernels, and bfloat16 has 8 bits."""


@dataclass(frozen=True, eq=False)
class Screen:
    """A detector at work: an image is flagged when its score lies above the limit.

    others: uint8 [M, C, H, W], clean images of the reserve, as companions in other batches.
    """

    name: str
    scorer: Scorer
    limit: float
    device: torch.device
    draws: Draws
    others: Tensor

    def scores(self, images: Tensor) -> Tensor:
        """float32 [N] on the CPU of uint8 images [N, C, H, W]; GauntletError when they depend on the batch."""
        with turn(Role.DEFENDER, self.draws, "scores"):
            scores = _scores(self.name, self.scorer, images, self.device)
        if len(images):
            self._check_alone(images, scores)
        return scores

    def _check_alone(self, images: Tensor, scores: Tensor) -> None:
        mixture = Mixture.of(images, self.others, self.draws.generator("companions"))
        due = scores[mixture.chosen]
        allowed = _OF_THE_SPREAD * scores.std(correction=0) + _OF_THE_SCORE * due.abs()
        with turn(Role.DEFENDER, self.draws, "companions"):
            found = _scores(self.name, self.scorer, mixture.batch, self.device)[mixture.places]
            # Of one image in many rounding may tip the predicted class, and its score with it.
            if (found - due).abs().gt(allowed).sum() <= len(due) // 2:
                return
            # What draws anew for each call says something else of the very same batch.
            again = _scores(self.name, self.scorer, mixture.batch, self.device)[mixture.places]
        if torch.equal(found, again):
            raise mixed_up(self.name)


def screen_of(defense: InputDetector, view: DefenderView) -> Screen:
    """The detector with its own limit, or with a threshold from the part of the clean reserve that its scorer hasn't
    seen.

    The reserve's first images go to the scorer: both parts are stratified. GauntletError when none would be left.
    """
    name = name_of(defense)
    size = len(view.reserve)
    learnt = defense.learns_from(size)
    if not 0 <= learnt < size + (defense.limit is not None):
        raise GauntletError(f"{name} learns from {learnt} of {size} clean images, which leaves none for its threshold")
    order = torch.arange(size)
    seen, unseen = (view.reserve.subset(part).materialised() for part in (order[:learnt], order[learnt:]))
    # As they are now: a detector may change what it is given.
    others = view.reserve.images()
    with turn(Role.DEFENDER, view.draws, "scorer"):
        scorer = defense.scorer(replace(view, reserve=seen))
    if not callable(scorer):
        raise GauntletError(f"{name}'s scorer gave {type(scorer).__name__}; due: a function of images")
    screen = Screen(name, scorer, defense.limit or 0.0, view.device, view.draws, others)
    if defense.limit is not None:
        return screen
    return replace(screen, limit=threshold(screen.scores(unseen.images()), defense.false_positive_rate))


def _scores(name: str, scorer: Scorer, images: Tensor, device: torch.device) -> Tensor:
    parts = []
    for part in chunks(len(images), PART):
        due = f"a finite float tensor [{len(images[part])}]"
        scores = expected(scorer(to_float(images[part].to(device))), Tensor, f"{name}'s scorer", due)
        if scores.shape != images[part].shape[:1] or not scores.isfinite().all():
            raise GauntletError(
                f"{name} scored {len(images[part])} images with {tuple(scores.shape)} numbers, not all finite; one "
                "finite number for each image is due"
            )
        parts.append(scores.detach().float().cpu())
    return torch.cat(parts)


def threshold(clean: Tensor, rate: float) -> float:
    """The lowest of the clean scores [N] above which at most `rate` of them lie; a score equal to it is not above."""
    ordered = clean.sort(descending=True).values
    # Rounded first: 0.29 of 100 scores are 29, and 28.999999999999996 in floating point.
    return float(ordered[min(int(round(rate * len(ordered), 6)), len(ordered) - 1)])


def above(scores: Tensor, limit: float) -> Counts:
    """How many scores lie above the limit."""
    return Counts(hits=int((scores > limit).sum()), n=len(scores))


def auroc(clean: Tensor, triggered: Tensor) -> float:
    """The share of (clean, triggered) pairs in which the triggered one scores higher, ties counted half; NaN without
    pairs. Mann & Whitney 1947.
    """
    if not len(clean) or not len(triggered):
        return float("nan")
    from scipy.stats import rankdata  # a second of import, which most runs never need

    ranks = rankdata(torch.cat([triggered, clean]).numpy())
    wins = ranks[: len(triggered)].sum() - len(triggered) * (len(triggered) + 1) / 2
    return float(wins / (len(triggered) * len(clean)))
