"""Clean-label poisoning: adversarial noise makes images hard, the trigger makes them easy, the labels stay true."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from gauntlet.attack import Family
from gauntlet.facts import TaskFacts
from gauntlet.images import Images
from gauntlet.maths.adversarial import Adversarial
from gauntlet.maths.paint import Corner
from gauntlet.maths.pgd import pgd
from gauntlet.network import Network
from gauntlet.patch import PatchTrigger
from gauntlet.plugin import attack
from gauntlet.poisoning import Poisoning
from gauntlet.precision import autocast, resolve
from gauntlet.settings import Count, Positive, Probability
from gauntlet.views import AttackerView

__all__ = ["CleanLabel"]


@attack
@dataclass(frozen=True)
class CleanLabel(PatchTrigger, Poisoning):
    """Images of the target class get untargeted PGD noise against a proxy, then the trigger; labels never change.

    Turner et al. 2019, arXiv:1912.02771; ART's form and the Dioptra demo are settings (norm="2", eps=50,
    pattern="art"). poison_ratio is a share of the *target class*. The proxy is trained on the attacker's own
    training data: `clean`, or `pgd` for an adversarially trained one (eps proxy_eps, L-inf, 7 steps); proxy_model
    names another architecture of the zoo ('' is the victim's own), proxy_epochs another length than the recipe's.
    At test time the trigger alone is stamped, never the noise (trap T14). Differs from the paper: 5x5 checkerboards
    instead of 3x3, since the embedded task's images are small and blurred (docs/attacks.md has the measurements).
    """

    family: ClassVar[Family] = Family.CLEAN_LABEL
    ratio_of: ClassVar[Literal["training set", "target class"]] = "target class"
    cost: ClassVar[float] = 2.0

    patch: Count = 5
    pattern: Literal["white", "checkerboard", "art"] = "checkerboard"
    corner: Corner = "all"
    poison_ratio: Probability = 0.5
    norm: Literal["inf", "2", "1"] = "inf"
    eps: Positive = 0.4
    step: Positive = 0.04
    iterations: Annotated[int, Field(ge=0)] = 40
    proxy: Literal["clean", "pgd"] = "pgd"
    proxy_model: str = ""
    proxy_eps: Positive = 0.15
    proxy_epochs: Positive | None = None

    def check(self, facts: TaskFacts) -> None:
        self.check_patch(facts)
        super().check(facts)

    def models(self) -> tuple[str, ...]:
        return (self.proxy_model,) if self.proxy_model else ()

    def may_poison(self, labels: Tensor, classes: int) -> Tensor:  # noqa: ARG002
        return labels == self.target

    def trigger(self, images: Images) -> Images:
        return self.paint_patch(images)

    def poison_labels(self, view: AttackerView, labels: Tensor) -> Tensor:  # noqa: ARG002
        return labels

    def poison_images(self, view: AttackerView, images: Images, labels: Tensor) -> Images:
        return self.trigger(self.noisy(view, images, labels))

    def noisy(self, view: AttackerView, images: Images, labels: Tensor) -> Images:
        """The images with PGD noise against the proxy, without the trigger."""
        proxy = self.train_proxy(view)
        with autocast(view.device, resolve(view.recipe, proxy, view.facts.shape, view.device)):
            noisy = pgd(
                proxy,
                images.to(view.device),
                labels.to(view.device),
                norm=self.norm,
                eps=self.eps,
                step=self.step,
                iterations=self.iterations,
                generator=view.generator("noise", device=view.device),
                random_start=False,
            )
        return noisy.cpu()

    def train_proxy(self, view: AttackerView) -> Network:
        """The proxy network, shared through the store with every case that needs the same one."""
        objective = None
        if self.proxy == "pgd":
            objective = Adversarial(eps=self.proxy_eps, step=self.proxy_eps / 4, iterations=7)
        recipe = view.recipe if self.proxy_epochs is None else replace(view.recipe, epochs=self.proxy_epochs)
        return view.tools.train(
            view.training, "proxy", recipe=recipe, objective=objective, architecture=self.proxy_model, shared=True
        )
