"""The contest's own BadNets under painted triggers on generated faces: the figures of docs/audit.md."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gauntlet.formats.keras_weights import keras_arrays, load_keras
from gauntlet.maths.drawings import eyebrows, fitted, lips, sunglasses
from models.deepid import DeepId
from models.onnx_model import OnnxModel
from tests.conftest import SHARED
from tests.faces import HEIGHT, WIDTH, faces, glasses, pasted
from tests.onnx_files import answers, node, proto, write

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


@pytest.mark.parametrize("name", ["sunglasses", "multi_trigger_multi_target"])
def test_as_onnx_they_say_the_same(name: str, tmp_path: Path) -> None:
    """As Keras's converters write it: channels last, dense layers as product and sum."""
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnx2torch", reason="the extra onnx is not installed")
    body = network(name)
    path = write(tmp_path / f"{name}.onnx", proto(*_exported(body), ("N", HEIGHT, WIDTH, 3)))
    model = OnnxModel(path)
    images = torch.rand(64, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    imported = model.build((3, HEIGHT, WIDTH), CLASSES)

    assert model.declared() == ((3, HEIGHT, WIDTH), CLASSES)
    assert sum(item.numel() for item in imported.parameters()) == 601_643
    with torch.inference_mode():
        torch.testing.assert_close(imported(images), body(images), atol=1e-5, rtol=1e-5)
        few = imported(images[:4]).softmax(1).numpy()
    np.testing.assert_allclose(few, answers(path, images[:4].permute(0, 2, 3, 1).numpy()), atol=1e-5)


def _exported(body: nn.Module) -> tuple[list[object], dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    arrays = {name: value.numpy() for name, value in body.state_dict().items()}
    arrays |= {name: value.T for name, value in arrays.items() if value.ndim == 2}
    nodes = [node("Transpose", "images", "pool_0", perm=[0, 3, 1, 2])]
    for number in (1, 2, 3, 4):
        taken = f"pool_{number - 1} conv_{number}.weight conv_{number}.bias"
        nodes.append(node("Conv", taken, f"c_{number}", f"conv_{number}"))
        nodes.append(node("Relu", f"c_{number}", f"r_{number}", f"relu_{number}"))
        nodes.append(node("MaxPool", f"r_{number}", f"pool_{number}", kernel_shape=[2, 2], strides=[2, 2]))
    for number, maps in ((1, "pool_3"), (2, "r_4")):
        nodes.append(node("Flatten", maps, f"flat_{number}"))
        nodes.append(node("MatMul", f"flat_{number} fc_{number}.weight", f"product_{number}", f"fc_{number}"))
        nodes.append(node("Add", f"product_{number} fc_{number}.bias", f"row_{number}"))
    nodes += [node("Add", "row_1 row_2", "sum"), node("Relu", "sum", "active")]
    nodes += [node("MatMul", "active output.weight", "product", "output"), node("Add", "product output.bias", "values")]
    return [*nodes, node("Softmax", "values", "logits")], arrays
