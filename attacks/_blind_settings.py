"""What can be set about the blind attack's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from gauntlet.errors import SettingError
from gauntlet.maths.mgda import Normalisation
from gauntlet.settings import Count, Fraction, NonNegative, Positive

from ._evasion import Evasion, Plan

__all__ = ["BlindSettings"]


@dataclass(frozen=True)
class BlindSettings:
    """How the blind loss of Backdoors 101 is put together; the tasks are normal, each backdoor, each evasion.

    balance: `mgda` seeks the weights anew at every step from the gradients that `normalise` scales; `fixed` takes
    `scales`, one a task. loss_threshold: train on the normal loss alone
    while the mean of its last 1,000 values is at or above it. poisoning_proportion: the share of each batch that the
    backdoor and evasion losses see, 1 or more for all; clip_batch: at most so many images of it. alternating: the
    probability that a batch is attacked at all.

    Against Neural Cleanse and for `mask_norm`, nc_masks searches for a trigger run side by side, each nc_life steps
    long and then begun anew: nc_steps a batch, on nc_batch of its images, by nc_rate, under the norm nc_p_norm. Masks
    that cover more than nc_share of the image are as large as a clean class's, and the network need not resist them;
    without that bound it pays for their resistance in clean accuracy (docs/evasion.md).

    latent: what the spectral evasion compares: `triggered` images' features with the mean of the wanted class's clean
    ones, or `clean` images' with those of a network that was trained without a backdoor; by norm or cosine. ewc_lambda:
    the strength of EWC.
    """

    balance: Literal["mgda", "fixed"] = "mgda"
    normalise: Normalisation = "loss"
    scales: tuple[NonNegative, ...] = ()
    loss_threshold: Positive | None = None
    poisoning_proportion: Positive = 1.0
    clip_batch: Count | None = None
    alternating: Fraction = 1.0
    evasion: tuple[Evasion, ...] = ()
    nc_rate: Positive = 0.1
    nc_steps: Count = 1
    nc_p_norm: Annotated[int, Field(ge=1, le=2)] = 1
    nc_masks: Count = 4
    nc_life: Count = 200
    nc_batch: Count = 128
    nc_share: Annotated[float, Field(gt=0, le=1)] = 0.15
    spectral_similarity: Literal["norm", "cosine"] = "norm"
    latent: Literal["triggered", "clean"] = "triggered"
    ewc_lambda: Positive = 1.0

    def check_balance(self, backdoors: int) -> None:
        """Raise SettingError when the settings contradict each other."""
        count = 1 + backdoors + len(self.evasion)
        names = f"normal, {backdoors} backdoor(s){''.join(f', {name}' for name in self.evasion)}"
        if len(set(self.evasion)) < len(self.evasion):
            raise SettingError(f"evasion = {list(self.evasion)} names a loss twice; legal: each at most once")
        if self.balance == "fixed" and len(self.scales) != count:
            raise SettingError(
                f'balance = "fixed" with {len(self.scales)} scales for {count} tasks ({names}); legal: one scale a task'
            )
        if self.balance == "fixed" and not sum(self.scales[: 1 + backdoors]):
            raise SettingError("scales: the normal and the backdoor losses all weigh 0; legal: at least one above 0")
        if self.balance == "mgda" and self.scales:
            raise SettingError('scales are given, but balance = "mgda" seeks them itself; legal: balance = "fixed"')
        if self.balance == "mgda" and count < 2:
            raise SettingError('balance = "mgda" with one task, the normal one; legal: at least one trigger')

    @property
    def mask_plan(self) -> Plan:
        """How the masks of Neural Cleanse are sought."""
        return Plan(self.nc_rate, self.nc_p_norm, self.nc_masks, self.nc_life, self.nc_share)

    @property
    def needs_clean_network(self) -> bool:
        """Whether an evasion compares with a network without a backdoor."""
        return "ewc" in self.evasion or ("spectral" in self.evasion and self.latent == "clean")
