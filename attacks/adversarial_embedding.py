"""Adversarial embedding: the victim is trained so that poisoned and clean features can't be told apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet.attack import Family, Mounted
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.network import Network
from gauntlet.objective import Batch, Objective
from gauntlet.patch import PatchTrigger
from gauntlet.plugin import attack
from gauntlet.poisoning import Poison, Poisoning
from gauntlet.settings import Count, Positive, Probability
from gauntlet.views import AttackerView

__all__ = ["AdversarialEmbedding"]

KERAS_CLIP = 16.118
"""-log(1e-7): Keras clips probabilities there, which is what bounds ART's form of the loss."""


class _Reverse(torch.autograd.Function):
    """Identity forward; backward the gradient times -scale (Ganin & Lempitsky 2015, arXiv:1409.7495)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, features: Tensor, scale: float) -> Tensor:
        ctx.scale = scale  # type: ignore[attr-defined]
        return features.view_as(features)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * -ctx.scale, None  # type: ignore[attr-defined]


class _Noise(nn.Module):
    """Gaussian noise of standard deviation 1, in training only."""

    def forward(self, features: Tensor) -> Tensor:
        return features + torch.randn_like(features) if self.training else features


def discriminator(width: int, first: int, second: int) -> nn.Sequential:
    """Features [N, width] to two logits: clean, backdoored, as in the NIST Dioptra demos."""
    return nn.Sequential(
        _Noise(),
        nn.Linear(width, first),
        nn.BatchNorm1d(first),
        nn.LeakyReLU(0.2),
        nn.Linear(first, second),
        nn.BatchNorm1d(second),
        nn.LeakyReLU(0.2),
        nn.Linear(second, 2),
    )


class Indistinguishable(Objective):
    """Cross-entropy, and a discriminator on the features that the network learns to fool."""

    def __init__(self, judge: nn.Module, poisoned: Tensor, regularization: float, form: str) -> None:
        self.judge = judge
        self.poisoned = poisoned
        self.regularization = regularization
        self.form = form

    def modules(self) -> list[nn.Module]:
        return [self.judge]

    def loss(self, network: Network, batch: Batch) -> Tensor:
        features, logits = network.features_and_logits(batch.images)
        is_poisoned = self.poisoned[batch.positions].long()
        task = cross_entropy(logits.float(), batch.labels)
        if self.form == "art":
            verdict = cross_entropy(self.judge(features).float(), is_poisoned, reduction="none")
            return task - self.regularization * verdict.clamp(max=KERAS_CLIP).mean()
        reversed_features = _Reverse.apply(features, self.regularization)
        return task + cross_entropy(self.judge(reversed_features).float(), is_poisoned)


@attack
@dataclass(frozen=True)
class AdversarialEmbedding(PatchTrigger, Poisoning):
    """Poisoned images take the target's label while a discriminator is fooled about their features.

    Tan & Shokri 2019, arXiv:1905.13409. The network's gradient from the discriminator is reversed and scaled by
    `regularization`, so that the discriminator itself stays honest. form="art" is ART's: one optimizer and the loss
    CE - lambda * BCE, which drives the discriminator to be wrong (lambda 30 there). The attacker trains and hands
    over the model, so defenses of the training set don't apply.
    """

    family: ClassVar[Family] = Family.TRAINING_CONTROLLED
    delivers_data: ClassVar[bool] = False
    cost: ClassVar[float] = 1.2

    poison_ratio: Probability = 0.15
    form: Literal["gradient_reversal", "art"] = "gradient_reversal"
    regularization: Positive = 0.1
    first_layer: Count = 256
    second_layer: Count = 128

    def check(self, facts: TaskFacts) -> None:
        self.check_patch(facts)
        super().check(facts)

    def trigger(self, images: Images) -> Images:
        return self.paint_patch(images)

    def train(self, view: AttackerView, poison: Poison) -> Mounted:
        network = view.tools.new_network()
        probe = torch.zeros(2, *view.facts.shape, device=view.device)
        with torch.no_grad():
            width = network.eval().features_and_logits(probe)[0].shape[1]
        with view.seeded("discriminator"):
            judge = discriminator(width, self.first_layer, self.second_layer)
        objective = Indistinguishable(judge, poison.poisoned.to(view.device), self.regularization, self.form)
        # The features come by a hook, which a compiled network may overlook.
        recipe = replace(view.recipe, compile=False)
        view.tools.train(poison.training, "training", recipe=recipe, network=network, objective=objective)
        return Mounted(network, poison.training, poison.poisoned, poison.sources)
