"""Training on adversarial images: the objective that the PGD defense and the clean-label attack's proxy share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet.maths.pgd import Norm, pgd
from gauntlet.network import Network
from gauntlet.objective import Batch, Objective

__all__ = ["Adversarial", "evaluating"]


@dataclass(frozen=True)
class Adversarial(Objective):
    """Cross-entropy on the batch's PGD images alone (Madry et al. 2018, 1706.06083).

    eps and step are in the unit of `norm`, on images in [0, 1]. The images are found with the network in eval mode, so
    that its dropout rests and its batch statistics see one pass a step, and learnt in the mode that it came in.
    """

    norm: Norm = "inf"
    eps: float = 0.15
    step: float = 0.001
    iterations: int = 7
    random_start: bool = True

    def loss(self, network: Network, batch: Batch) -> Tensor:
        with evaluating(network):
            images = pgd(
                network,
                batch.images,
                batch.labels,
                norm=self.norm,
                eps=self.eps,
                step=self.step,
                iterations=self.iterations,
                generator=batch.generator,
                random_start=self.random_start,
            )
        return cross_entropy(network(images), batch.labels)

    def spec(self) -> dict[str, Any]:
        return {"objective": "adversarial", **asdict(self)}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode for the block, then each module's own mode again: a frozen part may rest in eval all along."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
