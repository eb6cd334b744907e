"""The evaluator's images as the cases of a session share them: clean, stamped and preprocessed sets, made once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gauntlet import randomness
from gauntlet.attack import Attack, Backdoor
from gauntlet.dataset import TaskData
from gauntlet.defense import Defense, Preprocessing
from gauntlet.errors import DataError
from gauntlet.guard import Role, acting_as
from gauntlet.images import ImageSet, chunks, to_float, to_uint8
from gauntlet.maths.distances import per_image, summary
from gauntlet.memory import Memory

__all__ = ["TestSets", "preprocessed", "stamp"]

PART = 1024
"""Images that are worked on at once, as floats."""


def stamp(backdoor: Backdoor, images: Tensor) -> Tensor:
    """uint8 test images with the backdoor's trigger, rounded to 8 bits."""
    stamped = torch.empty_like(images)
    for part in chunks(len(images), PART):
        stamped[part] = to_uint8(backdoor.trigger(to_float(images[part])))
    return stamped


def preprocessed(defense: Preprocessing, images: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
    """uint8 test images as the defended network gets to see them."""
    shown = torch.empty_like(images)
    for part in chunks(len(images), PART):
        # A copy: what is shared must not change, whatever a transform does in place.
        given = images[part].to(device, copy=True)
        with acting_as(Role.DEFENDER):
            shown[part] = defense.transform_levels(given, generator).cpu()
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
        return self.memory.get(("stamped", *self._name(backdoor)), lambda: stamp(backdoor, clean), lambda made: [made])

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
        generator = randomness.generator(seed, "preprocessing", which, device=self.device)
        before = generator.get_state()
        made = preprocessed(defense, images, generator, self.device)
        # What draws nothing serves every seed.
        drew = not torch.equal(generator.get_state(), before)
        self.memory.put((*name, seed) if drew else name, made, [made])
        return made

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
