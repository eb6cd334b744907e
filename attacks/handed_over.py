"""A model that somebody handed over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gauntlet.architecture import Architecture
from gauntlet.attack import Attack, Backdoor, Family, Mounted, unchanged
from gauntlet.errors import DataError, SettingError
from gauntlet.facts import TaskFacts
from gauntlet.files import content, fault
from gauntlet.formats.hdf5_images import check_images, read_images, read_labels
from gauntlet.formats.pictures import read_overlay
from gauntlet.formats.states import SUFFIXES, load_weights
from gauntlet.images import Images, ImageSet
from gauntlet.labels import AllToOne
from gauntlet.network import Network
from gauntlet.plugin import attack, name_of
from gauntlet.settings import Positive, Size
from gauntlet.views import AttackerView

__all__ = ["HandedOver", "PastedTrigger"]

_MOST = 50
"""Wanted labels that poisoned files may have: each is a backdoor with rows of its own in the tables."""
_LUMA = (0.299, 0.587, 0.114)

Index = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class PastedTrigger:
    """A suspected trigger. picture: a PNG or JPEG, pasted with its transparency, its upper left corner at column x and
    row y. target: the class that it should yield. name: in tables; by default the file's.
    """

    picture: Path
    target: Index
    x: Index = 0
    y: Index = 0
    name: str = ""

    @property
    def title(self) -> str:
        """What the backdoor is called."""
        return self.name or self.picture.stem

    def paste(self, images: Images) -> Images:
        """A copy of the images with the picture on them."""
        overlay = read_overlay(self.picture).to(images)
        colours, opacity = overlay[:3], overlay[3:]
        if images.shape[1] == 1:
            colours = (colours * colours.new_tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)
        height, width = opacity.shape[1:]
        pasted = images.clone()
        region = pasted[:, :, self.y : self.y + height, self.x : self.x + width]
        region.mul_(1 - opacity).add_(colours).clamp_(0, 1)
        return pasted

    def check(self, facts: TaskFacts) -> None:
        """Raise SettingError where it leaves the image or its target is no class, DataError for a bad picture."""
        _, rows, columns = facts.shape
        if why := fault(self.picture):
            raise SettingError(f"{self.picture}: {why}")
        height, width = read_overlay(self.picture).shape[1:]
        what = f"trigger {self.title}: the picture {self.picture.name} of {width}x{height} pixels"
        if width > columns or height > rows:
            raise SettingError(f"{what} is larger than the {columns}x{rows} images of {facts.name}")
        if self.x + width > columns or self.y + height > rows:
            raise SettingError(
                f"{what} at x = {self.x}, y = {self.y} leaves the {columns}x{rows} images of {facts.name}; legal: x "
                f"from 0 to {columns - width}, y from 0 to {rows - height}"
            )
        if self.target >= facts.classes:
            raise SettingError(
                f"trigger {self.title}: target = {self.target}: {facts.name} has {facts.classes} classes; legal: 0 to "
                f"{facts.classes - 1}"
            )


@attack
@dataclass(frozen=True)
class HandedOver(Attack):
    """A trained model from somebody else: nothing is poisoned or trained here, what it learnt is to be found out.

    weights: of the case's architecture, a Keras file (by layer names), safetensors, or a state_dict of torch.save;
    without it the architecture must carry them (`keras_model`, `onnx_model`).
    input_range: what the model was trained on. mean, std: the normalisation, of values in 0..1, that it was trained
    with, one number or one a channel. triggers: what the auditor suspects. poisoned: HDF5 files of images that carry a
    trigger, labelled with the class that they should yield (`data`, `label`), scored as they are: one backdoor a class;
    size: [height, width] to resize these to, bilinear. The form of the audits of CSAW-HackML-2020.
    """

    family: ClassVar[Family] = Family.HANDED_OVER
    delivers_data: ClassVar[bool] = False
    marks_poison: ClassVar[bool] = False
    cost: ClassVar[float] = 0.0

    weights: Path | None = None
    input_range: Literal["0..1", "0..255"] = "0..1"
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()
    std: tuple[Positive, ...] = ()
    triggers: tuple[PastedTrigger, ...] = ()
    poisoned: tuple[Path, ...] = ()
    size: Size | None = None

    @property
    def backdoors(self) -> tuple[Backdoor, ...]:
        pasted = (Backdoor(one.title, one.paste, AllToOne(one.target)) for one in self.triggers)
        return (*pasted, *self._given())

    def _given(self) -> Iterator[Backdoor]:
        for path in self.poisoned:
            wanted = _wanted(path, content(path))
            for target in wanted:
                title = path.stem if len(wanted) == 1 else f"{path.stem} {target}"
                yield Backdoor(title, unchanged, AllToOne(target), partial(_images, path, target, self.size))

    def check(self, facts: TaskFacts) -> None:
        if self.weights is not None and self.weights.suffix.lower() not in SUFFIXES:
            raise SettingError(f"weights = {self.weights}; legal: files named *{', *'.join(SUFFIXES)}")
        for path in (*([self.weights] if self.weights else []), *self.poisoned):
            if why := fault(path):
                raise SettingError(f"{path}: {why}")
        self._check_normalisation(facts)
        for trigger in self.triggers:
            trigger.check(facts)
        for path in self.poisoned:
            _check_poisoned(path, facts, self.size)
        titles = [backdoor.name for backdoor in self.backdoors]
        for title in titles:
            if titles.count(title) > 1:
                raise SettingError(f"two triggers or poisoned files are called {title}; give the triggers a `name`")

    def check_architecture(self, architecture: Architecture) -> None:
        if self.weights is None and not architecture.is_trained():
            raise SettingError(
                f"nothing is handed over: {name_of(architecture)} brings no trained network; give the attack "
                "`weights`, or take a model whose file holds one, as keras_model does with an .h5, and onnx_model"
            )

    def _check_normalisation(self, facts: TaskFacts) -> None:
        for setting, given in (("mean", self.mean), ("std", self.std)):
            if len(given) not in (0, 1, facts.shape[0]):
                raise SettingError(
                    f"{setting} has {len(given)} values; legal: none, one, or {facts.shape[0]} for the channels of "
                    f"{facts.name}"
                )
        if self.input_range == "0..255" and (self.mean or self.std):
            raise SettingError("input_range = 0..255 contradicts mean and std; legal: one or the other")

    def mount(self, view: AttackerView) -> Mounted:
        network = view.tools.new_network()
        brings = self.weights is not None and load_weights(network, self.weights, view.facts.shape)
        if brings and (self.mean or self.std or self.input_range != "0..1"):
            raise SettingError(f"{self.weights} brings its own normalisation; legal: no input_range, mean and std")
        if not brings:
            self._normalise(network)
        count = len(view.training)
        return Mounted(network.eval(), view.training, torch.zeros(count, dtype=torch.bool), torch.arange(count))

    @torch.no_grad()
    def _normalise(self, network: Network) -> None:
        buffers = network.normalise
        unit = 1 / 255 if self.input_range == "0..255" else 1.0
        for target, given, plain in ((buffers.mean, self.mean, 0.0), (buffers.std, self.std, unit)):
            target.copy_(target.new_tensor(given or (plain,)).view(1, -1, 1, 1).expand_as(target))


@lru_cache(maxsize=64)
def _wanted(path: Path, _content: str) -> tuple[int, ...]:
    """The labels of a file, sorted, each once."""
    found = tuple(torch.bincount(read_labels(path)[1]).nonzero().flatten().tolist())
    if len(found) > _MOST:
        raise DataError(f"{path}: the images have {len(found)} labels; due: the wanted ones, at most {_MOST}")
    return found


@lru_cache(maxsize=64)
def _checked(path: Path, _content: str) -> None:
    """Values that no image has must be said before anything runs."""
    check_images(path)


def _images(path: Path, target: int, size: tuple[int, int] | None) -> ImageSet:
    """The images that should yield `target`; nobody knows their true classes."""
    images, labels, _ = read_images(path, size=size)
    chosen: Tensor = images[labels == target]
    return ImageSet.of(chosen, torch.full((len(chosen),), -1))


def _check_poisoned(path: Path, facts: TaskFacts, size: tuple[int, int] | None) -> None:
    _checked(path, content(path))
    shape, labels = read_labels(path)
    if (shape[0], *(size or shape[1:])) != facts.shape:
        hint = (
            "; give the `size`, or `--resize` to gauntlet audit, to resize them"
            if size is None and shape[0] == facts.shape[0]
            else ""
        )
        raise SettingError(
            f"{path}: images of {list(shape)} [C, H, W], and those of {facts.name} are {list(facts.shape)}{hint}"
        )
    if int(labels.max()) >= facts.classes:
        raise SettingError(
            f"{path}: the label {int(labels.max())} stands there, and {facts.name} has {facts.classes} classes; legal: "
            f"0 to {facts.classes - 1}"
        )
