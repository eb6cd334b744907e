"""Weights of torch.save and safetensors whose tensors are no plain real numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gauntlet.errors import DataError
from gauntlet.formats.states import load_weights
from gauntlet.network import Network

SHAPE = (1, 1, 2)


@pytest.fixture
def network() -> Network:
    body = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.BatchNorm1d(3))
    return Network(body, (0.5,), (0.5,), "1", None)


ODD: dict[str, tuple[Callable[[], Tensor], str]] = {
    "8-bit floats": (lambda: torch.zeros(3).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "wide whole numbers without a sign": (lambda: torch.zeros(3, dtype=torch.uint64), "torch.uint64"),
    "complex": (lambda: torch.zeros(3, dtype=torch.complex64), "torch.complex64"),
    "meta": (lambda: torch.zeros(3, device="meta"), "torch.float32, without its values (on the meta device)"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]), "torch.float32, nested"),
    "sparse": (lambda: torch.zeros(3).to_sparse(), "torch.float32, torch.sparse_coo"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("parameter", ["1.bias", "2.running_var"])
def test_an_odd_type_is_refused_by_name(name: str, parameter: str, network: Network, tmp_path: Path) -> None:
    odd, kind = ODD[name]
    torch.save(network.body.state_dict() | {parameter: odd()}, path := tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"w\.pt: ") as caught:
        load_weights(network, path, SHAPE)
    assert str(caught.value) == f"{path}: {parameter} has the type {kind}; legal: plain real numbers"


def test_safetensors_are_held_to_that_too(network: Network, tmp_path: Path) -> None:
    state = network.body.state_dict()
    save_file(state | {"1.bias": torch.zeros(3).to(torch.float8_e5m2)}, path := tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"1\.bias has the type torch\.float8_e5m2; legal: plain real numbers$"):
        load_weights(network, path, SHAPE)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_plain_types_are_taken(kind: torch.dtype, network: Network, tmp_path: Path) -> None:
    state = {name: torch.ones_like(value, dtype=kind) for name, value in network.body.state_dict().items()}
    torch.save(state, path := tmp_path / "w.pt")
    load_weights(network, path, SHAPE)
    assert all(value.eq(1).all() for value in network.body.state_dict().values())


def test_a_named_pipe_is_not_waited_for(network: Network, tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"w\.pt: it is a named pipe; due: a file"):
        load_weights(network, path, SHAPE)
