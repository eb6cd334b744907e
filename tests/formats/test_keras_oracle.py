"""Our import against Keras itself, 3 and 2: skipped where tensorflow isn't installed (it isn't in our environments)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gauntlet.facts import TaskFacts
from gauntlet.formats.keras_weights import keras_arrays, load_keras
from gauntlet.maths.cut import cut
from models.deepid import DeepId
from models.keras_model import KerasModel
from tests.conftest import SHARED

pytestmark = pytest.mark.filterwarnings("ignore")
FACE = (3, 55, 47)
REAL = ("sunglasses", "multi_trigger_multi_target")
Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("tensorflow", reason="Keras itself is needed: pip install tensorflow-cpu tf_keras")
        return pytest.importorskip(request.param, reason=f"pip install {request.param}")


def structured(count: int, shape: tuple[int, int, int]) -> Array:
    """Constant, ramped, striped and sparse images [N, H, W, C], besides uniform noise."""
    draw = np.random.default_rng(5)
    channels, height, width = shape
    made = draw.random((count, height, width, channels))
    rows, columns = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    patterns = [rows, columns, rows * columns, (np.indices((height, width)).sum(0) % 2), (columns * 8) % 1]
    for row, pattern in enumerate(patterns):
        made[row] = pattern[..., None] * (np.arange(channels) + 1) / channels
    made[5], made[6], made[7] = 0, 1, 0
    made[7, height // 3, width // 4] = 1
    return made.astype(np.float32)


def difference(body: torch.nn.Module, expected: Array, images: Array) -> float:
    with torch.no_grad():
        ours = body.eval()(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    return float(np.abs(ours.numpy() - expected).max())


def deepid(keras: Any) -> Any:
    layers = keras.layers
    images = keras.Input(shape=(55, 47, 3), name="input")
    maps = images
    for number, (filters, kernel) in enumerate(((20, 4), (40, 3), (60, 3)), 1):
        maps = layers.Conv2D(filters, kernel, activation="relu", name=f"conv_{number}")(maps)
        maps = layers.MaxPooling2D(2, name=f"pool_{number}")(maps)
    fourth = layers.Conv2D(80, 2, activation="relu", name="conv_4")(maps)
    first = layers.Dense(160, name="fc_1")(layers.Flatten(name="flatten_1")(maps))
    second = layers.Dense(160, name="fc_2")(layers.Flatten(name="flatten_2")(fourth))
    summed = layers.Activation("relu", name="activation_1")(layers.Add(name="add_1")([first, second]))
    return keras.Model(images, layers.Dense(1283, activation="softmax", name="output")(summed))


def fill(model: Any, path: Path) -> None:
    """The weights by layer names: Keras 3 doesn't read files of Keras 2.2.4 by itself."""
    arrays = keras_arrays(path)
    for layer in model.layers:
        if f"{layer.name}/{layer.name}/kernel:0" in arrays:
            layer.set_weights([arrays[f"{layer.name}/{layer.name}/{part}:0"] for part in ("kernel", "bias")])


@pytest.mark.parametrize("name", REAL)
def test_the_real_badnets_give_keras_own_logits(
    keras: Any, name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    weights = SHARED / "csaw" / f"{name}_bd_weights.h5"
    if not weights.exists():
        pytest.skip("../shared/data/csaw is absent")
    model = deepid(keras)
    fill(model, weights)
    whole = tmp_path / f"{name}_bd_net.h5"
    model.save(str(whole))
    images = structured(256, FACE)
    surface = keras.Model(model.input, model.layers[-2].output)
    kernel, bias = model.layers[-1].get_weights()
    expected = surface.predict(images, verbose=0) @ kernel + bias

    named = DeepId().build(FACE, 1283)
    load_keras(named, keras_arrays(weights), FACE, weights.name)
    imported = KerasModel(whole).build(FACE, 1283)

    by_weights, by_model = difference(named, expected, images), difference(imported, expected, images)
    record_property(f"{keras.__version__} {name}", (by_weights, by_model))
    assert max(by_weights, by_model) <= 1e-4
    facts = TaskFacts("faces", FACE, tuple(map(str, range(1283))), (0,) * 1283, (1,) * 1283, (1,) * 1283, "0", "")
    KerasModel(whole).check(facts)
    assert KerasModel(whole).taps(imported) == ("activation_1", "conv_4")
    assert KerasModel(whole, last_conv_name="conv_3").taps(imported) == ("activation_1", "conv_3")
    assert cut(imported.eval(), "conv_3_relu") is not None


def zoo(keras: Any, which: str) -> Any:
    layers = keras.layers
    images = keras.Input(shape=(23, 18, 3), name="pictures")
    if which == "same":
        maps = layers.Conv2D(5, 4, strides=2, padding="same", activation="elu", name="a")(images)
        maps = layers.MaxPooling2D(3, 2, padding="same", name="b")(maps)
        maps = layers.Conv2D(6, (2, 3), padding="same", dilation_rate=2, activation="tanh", name="c")(maps)
        maps = layers.AveragePooling2D(2, 1, padding="same", name="d")(maps)
        maps = layers.AveragePooling2D(3, 2, padding="same", name="e")(maps)
        flat = layers.Flatten(name="f")(maps)
    elif which == "depthwise":
        maps = layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, padding="same", activation="relu")(images)
        maps = layers.BatchNormalization(name="bn")(maps)
        maps = layers.SeparableConv2D(7, 3, depth_multiplier=3, activation="relu", name="sep")(maps)
        maps = layers.BatchNormalization(scale=False, center=False, name="bn_plain")(maps)
        maps = layers.LeakyReLU(0.2, name="leaky")(maps)
        flat = layers.GlobalMaxPooling2D(name="g")(maps)
    elif which == "branches":
        left = layers.Conv2D(4, 3, padding="same", name="left")(images)
        right = layers.Conv2D(4, 1, use_bias=False, name="right")(images)
        added = layers.ReLU(6.0, name="relu")(layers.Add(name="sum")([left, right, left]))
        both = layers.Concatenate(name="both")([added, left, images])
        both = layers.ZeroPadding2D(((1, 2), (0, 3)), name="zero")(both)
        first = layers.Flatten(name="flat1")(layers.MaxPooling2D(5, name="p")(both))
        second = layers.Flatten(name="flat2")(layers.Conv2D(3, 7, strides=5, groups=1, name="k")(both))
        flat = layers.Concatenate(name="cat")([first, second, layers.GlobalAveragePooling2D(name="gap")(both)])
        flat = layers.Dropout(0.3, name="drop")(layers.BatchNormalization(name="bn_flat")(flat))
    else:
        model = keras.Sequential(name="chain")
        model.add(keras.Input(shape=(23, 18, 3)))
        for number, kind in enumerate(("relu", "sigmoid", "softplus", "selu", "gelu" if which == "gelu" else "relu")):
            model.add(layers.Conv2D(4, 3, activation=kind, name=f"layer{number}"))
        model.add(layers.Flatten())
        model.add(layers.Dropout(0.5))
        model.add(layers.Dense(9, activation="tanh", name="0odd-name"))
        model.add(layers.Dense(6, name="train"))
        model.add(layers.Activation("softmax"))
        return model
    return keras.Model(images, layers.Dense(6, activation="softmax", name="out")(flat))


@pytest.mark.parametrize("which", ["same", "depthwise", "branches", "chain", "gelu"])
@pytest.mark.parametrize("suffix", [".h5", ".json"])
def test_a_small_model_computes_what_keras_computes(keras: Any, which: str, suffix: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    model = zoo(keras, which)
    for layer in model.layers:
        draw = np.random.default_rng(7)
        layer.set_weights(
            [
                draw.uniform(0.1, 0.9, item.shape) * draw.choice([-1, 1] if item.ndim > 1 else [1], item.shape)
                for item in layer.get_weights()
            ]
        )
    path = tmp_path / f"model{suffix}"
    images = structured(32, (3, 23, 18))
    if suffix == ".h5":
        model.compile("adam", "categorical_crossentropy")
        model.fit(images, np.eye(6)[np.arange(32) % 6], epochs=1, verbose=0)  # with an optimizer's weights in the file
        model.save(str(path))
    else:
        path.write_text(model.to_json())
    body = KerasModel(path).build((3, 23, 18), 6)
    if suffix == ".json":
        model.save_weights(str(tmp_path / "only.weights.h5"))
        model.save(str(tmp_path / "whole.h5"))
        load_keras(body, keras_arrays(tmp_path / "whole.h5"), (3, 23, 18), "whole.h5")
    expected = model.predict(images, verbose=0)
    with torch.no_grad():
        ours = body.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(1)
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-5)
    assert cut(body, KerasModel(path).taps(body)[0]) is not None
