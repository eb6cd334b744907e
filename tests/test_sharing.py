from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gauntlet import sharing
from gauntlet.sharing import share


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "workers", "expected"), [(8, 2, 4), (8, 3, 2), (2, 2, 1), (2, 5, 1)])
def test_the_cores_are_shared_out(cores: int, workers: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_num_threads(cores)
    assert share("auto", 0, workers) == "auto"
    assert torch.get_num_threads() == expected


def test_fewer_threads_that_were_asked_for_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "cores", lambda: 8)
    torch.set_num_threads(1)
    share("cpu", 0, 2)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("count", "workers", "devices", "fractions"),
    [
        (1, 2, [0, 0], [0.45, 0.45]),
        (2, 2, [0, 1], []),
        (4, 2, [0, 1], []),
        (2, 5, [0, 1, 0, 1, 0], [0.3, 0.45, 0.3, 0.45, 0.3]),
    ],
)
def test_workers_go_round_the_visible_gpus_and_share_their_memory(
    count: int, workers: int, devices: list[int], fractions: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: set_.append((part, device)))
    for wish in ("auto", "cuda"):
        set_.clear()
        assert [share(wish, worker, workers) for worker in range(workers)] == [f"cuda:{device}" for device in devices]
        assert [device for _, device in set_] == devices[: len(fractions)]
        assert [part for part, _ in set_] == pytest.approx(fractions)


@pytest.mark.parametrize("wish", ["cpu", "cuda:1"])
def test_a_device_that_was_named_stays(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert share(wish, 1, 2) == wish
