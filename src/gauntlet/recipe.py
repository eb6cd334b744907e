"""How a network is trained: plain settings, nothing that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from gauntlet.settings import Count, NonNegative, Positive, Probability

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A training recipe. The last epoch's weights are returned unless `early_stopping` asks otherwise (trap T7).

    epochs may be a fraction: 0.5 runs half of the batches. validation_split holds out a stratified share of the
    training data; early stopping looks at that share alone, and counts as better what is lower by min_delta.
    augmentation: `crop` pads by `crop_padding` pixels, with `crop_fill` (`reflect`: the image's own, mirrored at its
    border), and crops at random; `flip` mirrors at random; `alternating_flip`, in its stead, mirrors a random half in
    the first epoch, the other in the second, and so on; all act on images that already carry the trigger.
    label_smoothing is that of plain cross-entropy, of batches with poison mixed in too (`gauntlet.mixing`); another
    objective has it where it says so.
    momentum is that of `sgd` and `muon`. `amsgrad` is Adam with the AMSGrad correction (Reddi et al. 2018,
    arXiv:1904.09237). `muon` updates the weights of hidden layers; biases, normalisation and the
    last layer get Adam at `rest_rate`, on the same schedule and without weight decay. precision `auto` takes bf16
    autocast where the device and the network's size make it pay; with `fp32` convolutions on CUDA may round to TF32.
    """

    epochs: Positive = 10.0
    batch_size: Count = 128
    optimizer: Literal["sgd", "adam", "amsgrad", "rmsprop", "adagrad", "muon"] = "adam"
    learning_rate: Positive = 1e-3
    rest_rate: Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "linear", "cosine", "one_cycle", "multistep"] = "constant"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    gamma: Positive = 0.1
    augmentation: tuple[Literal["crop", "flip", "alternating_flip"], ...] = ()
    crop_padding: Count = 4
    crop_fill: Literal["zeros", "reflect"] = "zeros"
    label_smoothing: Probability = 0.0
    validation_split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    early_stopping: bool = False
    patience: Count = 5
    min_delta: NonNegative = 0.01
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.early_stopping and not self.validation_split:
            raise ValueError("early_stopping needs a validation_split above 0, since it may not look at test data")
        if {"flip", "alternating_flip"} <= set(self.augmentation):
            raise ValueError("augmentation names both flip and alternating_flip; legal: one of them")
