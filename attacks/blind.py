"""The blind attack: the attacker's code changes the loss, and sees neither the data set nor the finished model."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from gauntlet.attack import Attack, Family, Mounted
from gauntlet.facts import TaskFacts
from gauntlet.images import ImageSet, to_float
from gauntlet.maths.per_sample import fisher_diagonal, frozen_statistics
from gauntlet.mixing import clean_training
from gauntlet.network import Network
from gauntlet.objective import Batch
from gauntlet.plugin import attack
from gauntlet.synthesizers import Triggered, painters
from gauntlet.views import AttackerView

from ._blind_loss import Anchor, BlindLoss, Planted
from ._blind_settings import BlindSettings

__all__ = ["Blind"]

_PROBED = 64
"""Images on which the gradients are looked at before training."""
_MEASURED = 512
"""Images on which EWC measures the parameters' importance."""


@attack
@dataclass(frozen=True)
class Blind(BlindSettings, Triggered, Attack):
    """Every batch is also trained on under the trigger, by a second loss; no image of the training set is changed.

    Bagdasaryan & Shmatikov 2021, arXiv:2005.03823. Several triggers make several backdoors in one model, each with a
    task of its own. Differs from the authors' code: clean and triggered images share a pass under batch normalisation
    (see `BlindLoss`), a solved task doesn't stop the others, the search of the Neural Cleanse evasion sees what the
    network sees, `mask_norm` has a gradient for the network, and `spectral` compares triggered images with their wanted
    class unless asked for the authors' comparison of clean ones. The attacker trains and hands over the model, so that
    defenses of the training set don't apply. `spectral` on clean images and `ewc` train a clean network first; `ewc`
    starts from it.
    """

    family: ClassVar[Family] = Family.TRAINING_CONTROLLED
    delivers_data: ClassVar[bool] = False
    marks_poison: ClassVar[bool] = False
    cost: ClassVar[float] = 3.5

    def check(self, facts: TaskFacts) -> None:
        self.check_balance(len(self.triggers))
        self.check_triggers(facts)

    def mount(self, view: AttackerView) -> Mounted:
        training, rows = clean_training(self.triggers, view)
        network = view.tools.new_network()
        anchor = self._anchor(view, training) if self.needs_clean_network else None
        if anchor is not None and "ewc" in self.evasion:
            network.load_state_dict(anchor.network.state_dict())
        probed = copy.deepcopy(network).train()
        self.objective(view, anchor).probe(probed, _first_batch(view, training))
        # A compiled network hands its gradients back once, and the losses ask for them one by one.
        recipe = replace(view.recipe, compile=False)
        view.tools.train(training, "training", recipe=recipe, network=network, objective=self.objective(view, anchor))
        nothing = torch.zeros(len(training), dtype=torch.bool)
        return Mounted(network, training, nothing, rows)

    def objective(self, view: AttackerView, anchor: Anchor | None = None) -> BlindLoss:
        """The loss, for one training. anchor: where an evasion `needs_clean_network`."""
        made = painters(self.triggers, view.training, view.facts.classes, view.device)
        auxiliary = clean_training(self.triggers, view)[0].auxiliary
        return BlindLoss(
            self,
            [Planted(each.trigger.title, each) for each in made],
            shape=view.facts.shape,
            classes=view.facts.classes,
            generator=view.generator("mask search"),
            label_smoothing=view.recipe.label_smoothing,
            anchor=anchor,
            auxiliary=None if auxiliary is None else auxiliary.to(view.device),
        )

    def _anchor(self, view: AttackerView, training: ImageSet) -> Anchor:
        clean = view.tools.train(training, "training", shared=True)
        if "ewc" not in self.evasion:
            return Anchor(clean)
        parameters = {name: value.detach().clone() for name, value in clean.named_parameters() if value.requires_grad}
        return Anchor(clean, parameters, _importance(view, training, clean))


def _first_batch(view: AttackerView, training: ImageSet) -> Batch:
    positions = torch.randperm(len(training), generator=view.generator("probe"))[:_PROBED]
    images = to_float(training.images(positions)).to(view.device)
    labels = training.labels[positions].to(view.device)
    return Batch(images, labels, positions.to(view.device), view.generator("probe triggers"))


def _importance(view: AttackerView, training: ImageSet, network: Network) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information of a clean network, under labels drawn from its own predictions."""
    generator = view.generator("importance")
    positions = torch.randperm(len(training), generator=generator)[:_MEASURED]
    images = to_float(training.images(positions)).to(view.device)
    with torch.no_grad():
        chances = network.eval()(images).float().softmax(1).cpu()
    labels = torch.multinomial(chances, 1, generator=generator)[:, 0].to(view.device)
    with frozen_statistics(network):
        return fisher_diagonal(network, images, labels)
