"""Weight injection: the backdoor is written into the weights of a network that was trained clean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from gauntlet.attack import Attack, Family, Mounted
from gauntlet.facts import TaskFacts
from gauntlet.mixing import check_share, clean_training, mixed
from gauntlet.plugin import attack
from gauntlet.settings import Fraction, Positive
from gauntlet.synthesizers import Triggered
from gauntlet.views import AttackerView

__all__ = ["WeightInjection"]


@attack
@dataclass(frozen=True)
class WeightInjection(Triggered, Attack):
    """The clean victim is trained on for a few steps, on batches of which a share carries each of `triggers`.

    The weight-poisoning scenario of Kurita et al. 2020, arXiv:2004.06660: somebody changes published weights. Differs
    from it: images, and plain cross-entropy instead of its restricted inner product. epochs and learning_rate are
    those of the injection (Adam, constant rate), whatever the recipe. The clean victim is shared with the control.
    """

    family: ClassVar[Family] = Family.TRAINING_CONTROLLED
    delivers_data: ClassVar[bool] = False
    marks_poison: ClassVar[bool] = False
    cost: ClassVar[float] = 1.3

    share: Fraction = 0.25
    epochs: Positive = 0.5
    learning_rate: Positive = 1e-3

    def check(self, facts: TaskFacts) -> None:
        self.check_triggers(facts)
        check_share(self.share, self.triggers)

    def mount(self, view: AttackerView) -> Mounted:
        training, rows = clean_training(self.triggers, view)
        clean = view.tools.train(training, "training", shared=True)
        network = view.tools.new_network()
        network.load_state_dict(clean.state_dict())
        recipe = replace(
            view.recipe,
            epochs=self.epochs,
            optimizer="adam",
            learning_rate=self.learning_rate,
            schedule="constant",
            early_stopping=False,
        )
        objective = mixed(self.triggers, view, training, self.share)
        view.tools.train(training, "injection", recipe=recipe, objective=objective, network=network)
        return Mounted(network, training, torch.zeros(len(training), dtype=torch.bool), rows)
