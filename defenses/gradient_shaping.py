"""Gradient shaping: no training sample may pull harder than any other, and noise hides what little is left."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gauntlet.defense import InTraining
from gauntlet.maths.per_sample import clipped_sum, frozen_statistics
from gauntlet.maths.surrogate import surrogate
from gauntlet.network import Network
from gauntlet.objective import Batch, Objective
from gauntlet.plugin import defense
from gauntlet.randomness import beside
from gauntlet.settings import Count, NonNegative, Positive
from gauntlet.views import DefenderView

__all__ = ["GradientShaping", "Shaped"]


@dataclass(frozen=True)
class Shaped(Objective):
    """Cross-entropy whose gradient is (sum of the samples' gradients, each clipped to `clip`, + noise) / batch size.

    noise: the standard deviation of what is added to the sum, in absolute terms: not a multiple of `clip`. With batch
    normalisation a pass in training mode first moves the running statistics, which the gradients then take as given:
    within a batch's own statistics a sample has no gradient of its own.
    """

    clip: float = 1.0
    noise: float = 0.001

    def loss(self, network: Network, batch: Batch) -> Tensor:
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            with torch.no_grad():
                network(batch.images)
        with frozen_statistics(network):
            sums, losses = clipped_sum(network, batch.images, batch.labels, self.clip)
        trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
        size = len(batch.labels)
        generator = beside(batch.generator, batch.images.device)
        gradients = [(sums[name] + self._drawn(value, generator)) / size for name, value in trained]
        return surrogate(losses.mean(), [value for _, value in trained], gradients)

    def _drawn(self, parameter: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(parameter.shape, generator=generator, device=generator.device) * self.noise

    def spec(self) -> dict[str, Any]:
        return {"objective": "shaped gradients", **asdict(self)}


@defense
@dataclass(frozen=True)
class GradientShaping(InTraining):
    """Trains anew with each sample's gradient clipped to a norm of `clip` and noise of deviation `noise` on their sum.

    Hong et al. 2020, arXiv:2002.11497, as the Backdoors 101 code had it: S = 1, sigma = 0.001 for MNIST and S = 10,
    sigma = 0.05 for ImageNet; DP-SGD (Abadi et al. 2016, arXiv:1607.00133) with noise far below what privacy asks for.
    Adam at `learning_rate` on batches of `batch_size`; everything else is the case's recipe, without label smoothing.
    Networks with batch normalisation are clipped under their running statistics (`Shaped`), where DP-SGD proper refuses
    them.
    """

    cost: ClassVar[float] = 4.0

    clip: Positive = 1.0
    noise: NonNegative = 0.001
    learning_rate: Positive = 5e-4
    batch_size: Count = 256

    def train(self, view: DefenderView) -> Network:
        recipe = replace(
            view.recipe,
            optimizer="adam",
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            label_smoothing=0.0,
            compile=False,
        )
        objective = Shaped(self.clip, self.noise)
        return view.tools.train(view.training, "training", recipe=recipe, objective=objective, shared=True)
