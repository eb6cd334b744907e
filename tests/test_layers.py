from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gauntlet.errors import SettingError
from gauntlet.facts import TaskFacts
from gauntlet.layers import glorot_uniform, kaiming_normal, require_side


def _stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(300, 200))


def test_glorot_has_kerass_limits_and_zero_biases() -> None:
    stack = glorot_uniform(_stack())
    for layer, limit in ((stack[0], math.sqrt(6 / (8 * 25 + 32 * 25))), (stack[4], math.sqrt(6 / (300 + 200)))):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert 0.99 * limit < layer.weight.abs().max() <= limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.03)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_kaiming_keeps_the_scale_of_the_signal() -> None:
    stack = kaiming_normal(_stack())
    assert isinstance(stack[0], nn.Conv2d)
    assert stack[0].weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 25)), rel=0.03)
    assert stack[0].bias is not None
    assert not stack[0].bias.any()


@pytest.mark.parametrize("shape", [(3, 9, 20), (3, 20, 9)])
def test_the_shorter_side_decides(shape: tuple[int, int, int]) -> None:
    facts = TaskFacts("toy", shape, ("a", "b"), (1, 1), (1, 1), (1, 1), "0", "made up")
    require_side("net", facts, 9)
    with pytest.raises(SettingError, match=rf"net takes images of at least 10x10 .* toy have {shape[1]}x{shape[2]}"):
        require_side("net", facts, 10)
