"""The searches that the blind attack keeps up against Neural Cleanse."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from attacks._evasion import MaskSearch, Plan, heat, heat_excess
from gauntlet.network import Network


class _Lamp(nn.Module):
    """Class 1 when one pixel is bright, else class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))

    def forward(self, images: Tensor) -> Tensor:
        seen = self.gain * (images[:, 0, 1, 2] - 0.5)
        return torch.stack([-seen, seen], dim=1)


def _network() -> Network:
    return Network(nn.Sequential(_Lamp()), [0.0], [1.0], "0", None).train()


def _search(plan: Plan) -> MaskSearch:
    return MaskSearch((1, 6, 6), plan, torch.Generator().manual_seed(7))


def _run(search: MaskSearch, steps: int, network: Network | None = None) -> None:
    images, wanted = torch.zeros(8, 1, 6, 6), torch.ones(8, dtype=torch.int64)
    for _ in range(steps):
        search.step(network or _network(), images, wanted)


def test_it_finds_the_pixel_that_a_trigger_needs() -> None:
    search, network = _search(Plan(count=2, life=1000)), _network()
    _run(search, 300, network)
    masks, patterns = search.parts()
    assert network.training
    for mask, pattern in zip(masks, patterns, strict=True):
        assert mask.flatten(1).argmax() == 1 * 6 + 2
        assert float(mask[0, 1, 2] * pattern[0, 1, 2]) > 0.5
        assert float(mask.sum()) < 2


def test_a_search_begins_anew_after_its_life_and_others_go_on() -> None:
    search = _search(Plan(count=2, life=20))
    _run(search, 9)
    older = search.raw.clone()
    _run(search, 1)
    moved = (search.raw - older).abs().flatten(1).amax(1)
    assert moved[0] < 0.5 < moved[1]
    _run(search, 10)
    assert (search.raw[0] - older[0]).abs().max() > 0.5


def test_only_masks_that_betray_something_are_shown() -> None:
    search = _search(Plan(count=2, share=0.3))
    images = torch.rand(5, 1, 6, 6)
    assert search.stamp(images)[0].shape == (0, 1, 6, 6)
    search.raw[1, :1] = -9.0
    shown, rows = search.stamp(images)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(shown, images, atol=1e-6, rtol=0)
    search.plan = replace(search.plan, share=1.0)
    mixed, _ = search.stamp(images)
    torch.testing.assert_close(mixed[1::2], images[1::2], atol=1e-6, rtol=0)
    assert not torch.allclose(mixed[0::2], images[0::2], atol=0.1)


def test_the_norm_of_the_next_mask_depends_on_the_network() -> None:
    search, network = _search(Plan(count=1)), _network()
    loss = search.lost_mask(network, torch.zeros(4, 1, 6, 6), torch.ones(4, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss, list(network.parameters()))
    assert 0 < float(loss.detach()) < 1
    assert float(gradient.abs()) > 0
    search.plan = replace(search.plan, share=0.01)
    assert float(search.lost_mask(network, torch.zeros(4, 1, 6, 6), torch.ones(4, dtype=torch.int64)).detach()) == 0


def test_heat_is_the_mean_of_each_images_own_map() -> None:
    """Two images that look at different cells, one ten times as strongly: both count alike."""
    maps = torch.zeros(3, 1, 2, 2, requires_grad=True)
    shown = maps + torch.tensor([[[[9.0, 9.0], [9.0, 9.0]]], [[[1.0, 0.0], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 10.0]]]])
    found = heat(shown[1:].sum((1, 2, 3)), shown, slice(1, 3))
    assert found.tolist() == [[0.5, 0.0], [0.0, 0.5]]


def test_only_the_triggered_images_are_cooled() -> None:
    triggered = torch.tensor([[0.9, 0.1], [0.2, 0.0]], requires_grad=True)
    clean = torch.tensor([[0.1, 0.5], [0.2, 0.3]], requires_grad=True)
    loss = heat_excess(triggered, clean)
    torch.autograd.backward(loss)
    assert float(loss.detach()) > 0
    assert clean.grad is None
    assert triggered.grad is not None
    assert triggered.grad.nonzero().tolist() == [[0, 0]]
