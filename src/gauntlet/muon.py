"""Muon: momentum whose matrices are made orthogonal before they are applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalised"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: they push singular values towards 1 fast, into about [0.7, 1.2]."""


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """float32 [m, n], or [m, ...] flattened to that, singular values brought near 1; zeros stay zeros. steps: from 1.

    Each step of the iteration multiplies X by a polynomial of its Gram matrix X X', so the steps are taken on the
    small Gram matrix and applied to the wide one once: a fifth of the work where one side is much the longer.
    """
    rows = matrix.flatten(1)
    turned = rows.shape[0] > rows.shape[1]
    wide = rows.mT if turned else rows
    wide = wide / (wide.norm() + 1e-7)
    gram = wide @ wide.mT
    turn = factor = _factor(gram)
    for _ in range(steps - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        turn = factor @ turn
    result: Tensor = turn @ wide
    return torch.reshape(result.mT if turned else result, matrix.shape)


def _factor(gram: Tensor) -> Tensor:
    one, three, five = _COEFFICIENTS
    factor = torch.addmm(gram, gram, gram, beta=three, alpha=five)
    factor.diagonal().add_(one)
    return factor


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, each weight's update orthogonalised; for the weights of hidden layers alone.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; a convolution's weight counts as a
    matrix with a row an output channel. The update is scaled by sqrt(max(1, rows / columns)), so that one rate suits
    all shapes. Differs: float32 throughout, where the original iterates in bfloat16. lr: length of a step in each
    singular direction. torch.optim.Muon computes the same for plain matrices alone.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update."""
        if closure is not None:
            raise NotImplementedError("Muon evaluates no closure")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight.grad)
                buffer = state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                update = orthogonalised(weight.grad.add(buffer, alpha=group["momentum"]))
                rows, columns = weight.shape[0], weight[0].numel()
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
