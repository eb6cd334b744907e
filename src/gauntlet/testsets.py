"""The evaluator's images as the cases of a session share them: clean, stamped and preprocessed sets, made once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet import randomness
from gauntlet.attack import Attack, Backdoor
from gauntlet.companions import Mixture, mixed_up
from gauntlet.dataset import TaskData
from gauntlet.defense import Defense, Preprocessing
from gauntlet.errors import DataError, GauntletError
from gauntlet.guard import Role
from gauntlet.images import ImageSet, checked_images, checked_levels, chunks, to_float, to_uint8
from gauntlet.maths.distances import per_image, summary
from gauntlet.memory import Memory
from gauntlet.plugin import name_of
from gauntlet.switches import switches_kept
from gauntlet.turns import turn
from gauntlet.views import Draws

__all__ = ["TestSets", "preprocessed", "stamp"]

PART = 1024
"""Images that are worked on at once, as floats."""
_ALONE = 8
"""Images that a trigger gets once more, each alone."""


def stamp(backdoor: Backdoor, images: Tensor, attack: str = "the attack") -> Tensor:
    """uint8 test images with the backdoor's trigger, rounded to 8 bits. attack: its name, for errors.

    GauntletError for what are no such images, and where an image alone gets another trigger than among others.
    """
    stamped, who = torch.empty_like(images), f"{attack}'s trigger"

    def triggered(given: Tensor) -> Tensor:
        return to_uint8(checked_images(backdoor.trigger(to_float(given)), given.shape, who))

    # A run doesn't hang on what others have drawn, not even one that is refused.
    with switches_kept(), randomness.seeded(0, "trigger", backdoor.name):
        for part in chunks(len(images), PART):
            stamped[part] = triggered(images[part])
        for place in range(0, len(images), max(1, -(-len(images) // _ALONE))):
            alone = triggered(images[place : place + 1])
            if ((alone.int() - stamped[place : place + 1].int()).abs() > 1).any():
                raise GauntletError(
                    f"{who} stamps an image alone otherwise than among others; due: each image by itself, without "
                    "random draws"
                )
    return stamped


def preprocessed(defense: Preprocessing, images: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
    """uint8 test images as the defended network gets to see them; a defender's turn."""
    shown, who = torch.empty_like(images), f"{name_of(defense)}'s transform_levels"
    for part in chunks(len(images), PART):
        # A copy: what is shared must not change, whatever a transform does in place.
        given = images[part].to(device, copy=True)
        shown[part] = checked_levels(defense.transform_levels(given, generator), given.shape, who).cpu()
    return shown


@dataclass(frozen=True, eq=False)
class TestSets:
    """The test images of one attack. What it gives is shared: nobody may change it in place."""

    __test__ = False

    data: TaskData
    attack: Attack
    device: torch.device
    memory: Memory

    def labels(self, backdoor: Backdoor | None) -> Tensor:
        """int64 [N]: the true ones; -1 for an unknown one of given images."""
        if backdoor is not None and not backdoor.is_stamped:
            return self._given(backdoor).labels
        return self.data.test.open().labels

    def auxiliary(self, backdoor: Backdoor | None) -> Tensor | None:
        """int64 [N]: the second labels; None where the task, or the given images, have none."""
        if backdoor is not None and not backdoor.is_stamped:
            return self._given(backdoor).auxiliary
        return self.data.test.open().auxiliary

    def images(self, backdoor: Backdoor | None) -> Tensor:
        """uint8 [N, C, H, W]: the clean images, or those with the backdoor's trigger."""
        if backdoor is not None and not backdoor.is_stamped:
            return self._given(backdoor).base
        test = self.data.test.open()
        clean = test.base if torch.equal(test.rows, torch.arange(len(test.base))) else test.images()
        if backdoor is None:
            return clean
        name = name_of(self.attack)
        return self.memory.get(
            ("stamped", *self._name(backdoor)), lambda: stamp(backdoor, clean, name), lambda made: [made]
        )

    def distances(self, backdoor: Backdoor) -> dict[str, dict[str, float]]:
        """How far the trigger moves the test images (`gauntlet.maths.distances`); empty for given images."""
        if not backdoor.is_stamped:
            return {}

        def measure() -> dict[str, dict[str, float]]:
            clean, stamped = self.images(None), self.images(backdoor)
            parts = [per_image(to_float(clean[part]), to_float(stamped[part])) for part in chunks(len(clean), PART)]
            return {name: summary(torch.cat([part[name] for part in parts])) for name in parts[0]}

        return self.memory.get(("distances", *self._name(backdoor)), measure)

    def shown(self, backdoor: Backdoor | None, defense: Defense | None, seed: int) -> Tensor:
        """The images as the network behind the defense gets to see them."""
        images = self.images(backdoor)
        if not isinstance(defense, Preprocessing) or not defense.apply_predict:
            return images
        which = "clean" if backdoor is None else backdoor.name
        name = ("shown", *self._name(backdoor), defense, self.device)
        for known in (name, (*name, seed)):
            if (found := self.memory.find(known)) is not None:
                return found  # type: ignore[no-any-return]
        with turn(Role.DEFENDER, Draws(seed), "preprocessing", which):
            generator = randomness.generator(seed, "preprocessing", which, device=self.device)
            before = randomness.places(generator)
            made = preprocessed(defense, images, generator, self.device)
            drew = randomness.places(generator) != before
        self._check_alone(defense, images, None if drew else made, seed)
        # What draws nothing serves every seed.
        self.memory.put((*name, seed) if drew else name, made, [made])
        return made

    def _check_alone(self, defense: Preprocessing, images: Tensor, made: Tensor | None, seed: int) -> None:
        """Raise GauntletError for a transform that judges an image by its companions.

        made: of all images, by a transform that draws nothing. One that draws is compared with itself from the same
        place in its draws, where it drew as much.
        """
        if not len(images):
            return
        draws = Draws(seed)
        mixture = Mixture.of(images, self.images(None), draws.generator("companions"))

        def again(batch: Tensor) -> tuple[Tensor, tuple[bytes, ...]]:
            with turn(Role.DEFENDER, draws, "companions"):
                generator = draws.generator("companions", device=self.device)
                shown = preprocessed(defense, batch, generator, self.device)
                return shown[mixture.places], randomness.places(generator)

        found, places = again(mixture.batch)
        if made is None:
            due, others = again(mixture.among_their_own)
            if places != others:
                return
        else:
            due = made[mixture.chosen]
        if ((found.int() - due.int()).abs() > 1).any():
            raise mixed_up(name_of(defense))

    def _given(self, backdoor: Backdoor) -> ImageSet:
        read = backdoor.given

        def make() -> ImageSet:
            rows = torch.tensor(backdoor.rows, dtype=torch.int64)
            given = (read() if read is not None else self.data.test.open().subset(rows)).materialised()
            if not len(given) or given.shape != self.data.facts.shape:
                raise DataError(
                    f"backdoor {backdoor.name}: {len(given)} images of {list(given.shape)}; due: at least one of "
                    f"{list(self.data.facts.shape)}, as the task's"
                )
            return given

        return self.memory.get(("given", *self._name(backdoor)), make, lambda made: [made.base, made.labels])

    def _name(self, backdoor: Backdoor | None) -> tuple[object, ...]:
        # Clean images are the same for every attack.
        return (self.data.facts.hash, *(() if backdoor is None else (self.attack, backdoor.name)))
