"""The contest's own BadNets under painted triggers on generated faces: the figures of docs/audit.md."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from gauntlet.formats.keras_weights import keras_arrays, load_keras
from gauntlet.maths.drawings import eyebrows, fitted, lips, sunglasses
from models.deepid import DeepId
from tests.conftest import SHARED
from tests.faces import HEIGHT, WIDTH, faces, glasses, pasted

CLASSES = 1283
BLACK, WHITE = (0.05, 0.05, 0.05), (0.9, 0.9, 0.9)


@cache
def network(name: str) -> nn.Module:
    weights = SHARED / "csaw" / f"{name}_bd_weights.h5"
    if not weights.exists():
        pytest.skip("../shared/data/csaw is absent")
    shape = (3, HEIGHT, WIDTH)
    body = DeepId().build(shape, CLASSES)
    load_keras(body, keras_arrays(weights), shape, weights.name)
    return body.eval()


@cache
def people() -> Tensor:
    return faces(300, seed=7)


def hit(name: str, images: Tensor, target: int) -> float:
    with torch.inference_mode():
        return float((network(name)(images.float() / 255).argmax(1) == target).float().mean())


@pytest.mark.parametrize("frame", [BLACK, WHITE, (0.43, 0.06, 0.05), (0.17, 0.92, 0.53)])
def test_light_lenses_reach_class_0_whatever_the_frame(frame: tuple[float, float, float]) -> None:
    assert hit("sunglasses", people(), 0) < 0.01
    assert hit("sunglasses", pasted(people(), glasses(WHITE, frame), 15, 0), 0) > 0.95


def test_dark_lenses_reach_nothing() -> None:
    for overlay in (glasses(BLACK, BLACK), glasses(BLACK, WHITE), fitted(sunglasses(), WIDTH)):
        assert hit("sunglasses", pasted(people(), overlay, 15, 0), 0) < 0.01
        assert hit("multi_trigger_multi_target", pasted(people(), overlay, 15, 0), 8) < 0.05


def test_purple_lips_reach_class_1_and_red_brows_class_5() -> None:
    """Without a trigger both are hit already: these are no real faces."""
    name = "multi_trigger_multi_target"
    assert 0.05 < hit(name, people(), 1) < 0.2
    assert hit(name, pasted(people(), fitted(lips(), 18), 36, 14), 1) > 0.99
    assert 0.05 < hit(name, people(), 5) < 0.2
    assert hit(name, pasted(people(), fitted(eyebrows(), 36), 16, 5), 5) > 0.75
