from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gauntlet.maths.grad_cam import cam_layer, distinct_maps, salient
from gauntlet.network import Network


def _network() -> Network:
    torch.manual_seed(2)
    layers = OrderedDict(
        conv=nn.Conv2d(1, 3, 3, padding=1),
        relu=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        flat=nn.Flatten(),
        out=nn.Linear(48, 4),
    )
    return Network(nn.Sequential(layers), [0.4], [0.5], "flat", "conv").eval()


def _by_hand(network: Network, image: Tensor, label: int) -> Tensor:
    """float [8, 8]: the Grad-CAM of one class of an image [1, 1, 8, 8]."""
    activations = torch.relu(network.body.get_submodule("conv")(network.normalise(image)))
    activations = activations.detach().requires_grad_()
    pooled = nn.functional.max_pool2d(activations, 2).flatten(1)
    logit = network.body.get_submodule("out")(pooled)[0, label]
    (gradient,) = torch.autograd.grad(logit, activations)
    raw = torch.relu((gradient.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True)).detach()
    due = interpolate(raw, (8, 8), mode="bilinear", align_corners=False)[0, 0]
    return due / due.max() if due.max() > 0 else due


def test_a_map_by_hand() -> None:
    network = _network()
    images = torch.rand(6, 1, 8, 8)
    maps, named = distinct_maps(network, images, 0)
    assert named.tolist() == network(images).argmax(1).tolist()
    for row in range(6):
        due = _by_hand(network, images[row : row + 1], int(named[row]))
        torch.testing.assert_close(maps[row], due, rtol=1e-4, atol=1e-5)


def test_the_layer_is_the_activation_behind_the_convolution() -> None:
    assert isinstance(cam_layer(_network()), nn.ReLU)
    plain = Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), [0.0], [1.0], "0", None)
    with pytest.raises(ValueError, match="without a convolution"):
        cam_layer(plain)


def test_the_salient_region_is_what_exceeds_the_share() -> None:
    maps = torch.tensor([[[0.0, 0.2], [0.5, 1.0]]])
    assert salient(maps, 0.4)[0, 0].tolist() == [[False, False], [True, True]]


def test_what_the_rivals_look_at_is_cut_off() -> None:
    """By the maps of the single classes, brought to the size of the layer's; at 8x8 both sizes are one."""
    network = _network()
    images = torch.rand(5, 1, 8, 8)
    ranked = network(images).argsort(1, descending=True)
    maps, named = distinct_maps(network, images, 2)
    assert named.tolist() == ranked[:, 0].tolist()
    own, first, second = (
        torch.stack([_by_hand(network, images[row : row + 1], int(ranked[row, place])) for row in range(5)])
        for place in range(3)
    )
    due = torch.relu(own - (first + second) / 2)
    peaks = due.amax((1, 2), keepdim=True)
    assert (peaks > 0).any()
    torch.testing.assert_close(maps, torch.where(peaks > 0, due / peaks.clamp(min=1e-12), due), rtol=1e-4, atol=1e-5)
