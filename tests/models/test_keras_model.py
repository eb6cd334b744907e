"""Keras models written by hand, against TensorFlow's definitions in numpy; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gauntlet.assembly import assemble, mould, wrap
from gauntlet.errors import DataError, GauntletError, SettingError
from gauntlet.facts import TaskFacts
from gauntlet.maths.cut import cut
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.settings import values
from models.keras_model import KerasModel
from tests.keras_files import Array, convolved, drawn, functional, layer, pooled, sequential, source, write

pytest.importorskip("h5py")
SHAPE = (3, 11, 9)


def facts(shape: tuple[int, int, int] = SHAPE, classes: int = 4) -> TaskFacts:
    counts = (10,) * classes
    return TaskFacts("toy", shape, tuple(map(str, range(classes))), counts, counts, counts, "0" * 64, "made up")


def images(count: int = 5) -> Array:
    return np.random.default_rng(1).random((count, 11, 9, 3)).astype(np.float32)


def logits(path: Path, classes: int = 4, **settings: Any) -> Array:
    model = KerasModel(path, **settings)
    model.check(facts(classes=classes))
    body = model.build(SHAPE, classes).eval()
    with torch.no_grad():
        logits: Array = body(torch.from_numpy(images()).permute(0, 3, 1, 2)).numpy()
    return logits


def normalised(x: Array, arrays: dict[str, Array], epsilon: float) -> Array:
    scale = arrays.get("gamma", np.float32(1)) / np.sqrt(arrays["moving_variance"] + epsilon)
    shifted: Array = ((x - arrays["moving_mean"]) * scale + arrays.get("beta", np.float32(0))).astype(np.float32)
    return shifted


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(2, 1, 1), (3, 2, 1), (4, 2, 1), (3, 1, 2), (2, 3, 1), (5, 4, 1)]
)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_convolution_pads_as_tensorflow_does(
    kernel: int, stride: int, dilation: int, padding: str, tmp_path: Path
) -> None:
    conv = drawn(1, kernel=(kernel, kernel, 3, 6), bias=(6,))
    maps = convolved(images(), conv["kernel"], stride, same=padding == "same", dilation=dilation) + conv["bias"]
    flat = np.maximum(maps, 0).reshape(5, -1)
    dense = drawn(2, kernel=(flat.shape[1], 4), bias=(4,))
    config = functional(
        source(11, 9, 3),
        layer("Conv2D", "c", "input", filters=6, kernel_size=[kernel] * 2, strides=[stride] * 2, padding=padding,
              dilation_rate=[dilation] * 2, activation="relu"),
        layer("Flatten", "f", "c"),
        layer("Dense", "d", "f", units=4, activation="softmax"),
    )  # fmt: skip
    path = write(tmp_path / "m.h5", config, {"c": conv, "d": dense})

    np.testing.assert_allclose(logits(path), flat @ dense["kernel"] + dense["bias"], atol=1e-5)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (2, 1), (3, 1), (4, 3), (2, 3)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_pool_pads_as_tensorflow_does(kind: str, size: int, stride: int, padding: str, tmp_path: Path) -> None:
    flat = pooled(images(), size, stride, kind, same=padding == "same").reshape(5, -1)
    dense = drawn(2, kernel=(flat.shape[1], 4))
    config = functional(
        source(11, 9, 3),
        layer("MaxPooling2D" if kind == "max" else "AveragePooling2D", "p", "input", pool_size=[size] * 2,
              strides=[stride] * 2, padding=padding),
        layer("Flatten", "f", "p"),
        layer("Dropout", "o", "f", rate=0.4),
        layer("Dense", "d", "o", units=4, use_bias=False),
    )  # fmt: skip
    path = write(tmp_path / "m.h5", config, {"d": dense})

    np.testing.assert_allclose(logits(path), flat @ dense["kernel"], atol=1e-5)


def _branched(tmp_path: Path) -> tuple[Path, Array]:
    deep = drawn(1, depthwise_kernel=(3, 3, 3, 2), bias=(6,))
    norm = drawn(2, gamma=(6,), beta=(6,), moving_mean=(6,), moving_variance=(6,))
    plain, point = drawn(3, kernel=(1, 1, 3, 6)), drawn(4, kernel=(2, 2, 6, 2), bias=(2,))
    left = normalised(
        convolved(images(), deep["depthwise_kernel"], same=True, depthwise=True) + deep["bias"], norm, 1e-2
    )
    summed = np.tanh(left + convolved(images(), plain["kernel"]))
    both = np.concatenate([summed, images()], 3)
    first = both.reshape(5, -1)
    second = (convolved(summed, point["kernel"], 3) + point["bias"]).reshape(5, -1)
    row = np.concatenate([first, second, both.max((1, 2))], 1)
    flat = drawn(5, moving_mean=(row.shape[1],), moving_variance=(row.shape[1],), beta=(row.shape[1],))
    dense, last = drawn(6, kernel=(row.shape[1], 5), bias=(5,)), drawn(7, kernel=(5, 4), bias=(4,))
    hidden = normalised(row, flat, 1e-3) @ dense["kernel"] + dense["bias"]
    hidden = np.where(hidden > 0, hidden, 0.3 * hidden)
    config = functional(
        source(11, 9, 3),
        layer("DepthwiseConv2D", "deep", "input", kernel_size=[3, 3], depth_multiplier=2, padding="same"),
        layer("BatchNormalization", "norm", "deep", axis=[3], epsilon=1e-2, momentum=0.9),
        layer("Conv2D", "plain", "input", filters=6, kernel_size=[1, 1], use_bias=False),
        layer("Add", "sum", "norm", "plain"),
        layer("Activation", "act", "sum", activation="tanh"),
        layer("Concatenate", "both", "act", "input", axis=-1),
        layer("Flatten", "first", "both"),
        layer("Conv2D", "point", "act", filters=2, kernel_size=[2, 2], strides=[3, 3]),
        layer("Flatten", "second", "point"),
        layer("GlobalMaxPooling2D", "top", "both"),
        layer("Concatenate", "row", "first", "second", "top", axis=1),
        layer("BatchNormalization", "flat", "row", scale=False),
        layer("Dense", "dense", "flat", units=5),
        layer("LeakyReLU", "leaky", "dense", alpha=0.3),
        layer("Dense", "last", "leaky", units=4, activation="linear"),
        layer("Activation", "soft", "last", activation="softmax"),
    )
    weights = {"deep": deep, "norm": norm, "plain": plain, "point": point, "flat": flat, "dense": dense, "last": last}
    due: Array = (hidden @ last["kernel"] + last["bias"]).astype(np.float32)
    return write(tmp_path / "m.h5", config, weights), due


def test_branches_sums_normalisation_and_flattened_halves(tmp_path: Path) -> None:
    path, expected = _branched(tmp_path)

    np.testing.assert_allclose(logits(path), expected, atol=1e-4)
    assert KerasModel(path).taps(KerasModel(path).build(SHAPE, 4)) == ("leaky", "point")
    assert KerasModel(path).declared() == (SHAPE, 4)


def test_the_raw_range_multiplies_by_255(tmp_path: Path) -> None:
    dense = drawn(2, kernel=(3, 4), bias=(4,))
    config = sequential(
        layer("GlobalAveragePooling2D", "g", batch_input_shape=[None, None, None, 3]),
        layer("Dense", "d", units=4),
    )
    path = write(tmp_path / "m.h5", config, {"d": dense})
    expected = 255 * images().mean((1, 2)) @ dense["kernel"] + dense["bias"]

    np.testing.assert_allclose(logits(path, input_range="0..255"), expected, rtol=1e-5)
    assert KerasModel(path).declared() is None


def test_a_network_of_it_is_cut_copied_and_assembled(tmp_path: Path) -> None:
    path, _ = _branched(tmp_path)
    model = KerasModel(path)
    network = wrap(model, facts(), (0.0,) * 3, (1.0,) * 3).eval()
    again = assemble(mould(model, facts(), (0.0,) * 3, (1.0,) * 3), network.state_dict())
    shown = torch.rand(2, *SHAPE)

    assert torch.equal(again(shown), network(shown))
    parts = cut(network.body, "norm")
    assert parts is not None
    assert torch.equal(parts.rest(*parts.front(shown)), network.body(shown))
    assert network.features_and_logits(shown)[0].shape == (2, 5)


def test_a_description_has_no_weights_and_the_seed_decides(tmp_path: Path) -> None:
    path, _ = _branched(tmp_path)
    copy = KerasModel(path).portable(tmp_path)
    with torch.random.fork_rng():
        states = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            states.append(copy.build(SHAPE, 4).state_dict())

    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["dense.weight"], states[2]["dense.weight"])
    assert all(value.isfinite().all() for value in states[0].values())
    assert copy.origin().startswith("from scratch, as described in the file model.json (sha256 ")
    assert KerasModel(path).origin().startswith("from the file m.h5 (sha256 ")


def test_names_that_are_no_attributes_are_changed_alone(tmp_path: Path) -> None:
    first, second = drawn(1, kernel=(3, 5), bias=(5,)), drawn(2, kernel=(5, 4), bias=(4,))
    config = sequential(
        layer("GlobalAveragePooling2D", "type", batch_input_shape=[None, 11, 9, 3]),
        layer("Dense", "0/a b", units=5, activation="relu"),
        layer("Dense", "forward", units=4),
    )
    path = write(tmp_path / "m.h5", config, {"0/a b": first, "forward": second})
    hidden = np.maximum(images().mean((1, 2)) @ first["kernel"] + first["bias"], 0)

    np.testing.assert_allclose(logits(path), hidden @ second["kernel"] + second["bias"], atol=1e-5)
    body = KerasModel(path).build(SHAPE, 4)
    assert [name for name, _ in body.named_children()] == [
        "input",
        "type_",
        "type_flat",
        "_0_a_b",
        "_0_a_b_relu",
        "forward_",
    ]


def test_layers_can_be_chosen_by_name(tmp_path: Path) -> None:
    path, _ = _branched(tmp_path)
    body = KerasModel(path).build(SHAPE, 4)

    assert KerasModel(path, feature_layer_name="row", last_conv_name="plain").taps(body) == ("row", "plain")
    for settings, message in (
        (
            {"feature_layer_name": "nothing"},
            "feature_layer_name = 'nothing': .*m.h5 has no such layer; it has: input, deep",
        ),
        ({"last_conv_name": "row"}, "last_conv_name = 'row' is no convolution of .*m.h5"),
    ):
        with pytest.raises(SettingError, match=message):
            KerasModel(path, **settings).check(facts())  # type: ignore[arg-type]


def test_settings_round_trip(tmp_path: Path) -> None:
    registry = Registry.discover()
    model = registry.build(Kind.MODEL, "keras_model", {"path": str(tmp_path / "m.h5")})
    assert registry.build(Kind.MODEL, "keras_model", values(model)) == model
    with pytest.raises(SettingError, match="keras_model"):
        registry.build(Kind.MODEL, "keras_model", {})


DENSE = layer("Dense", "d", "f", units=4)
FLAT = layer("Flatten", "f", "input")


def _plain(*between: dict[str, Any], **changes: Any) -> dict[str, Any]:
    made = functional(source(11, 9, 3), *(between or (FLAT,)), DENSE)
    made["config"] |= changes
    return made


def _conv(**config: Any) -> dict[str, Any]:
    return _plain(
        layer("Conv2D", "c", "input", **{"filters": 2, "kernel_size": [3, 3], **config}), layer("Flatten", "f", "c")
    )


BAD: dict[str, tuple[Any, str]] = {
    "lambda": (_plain(layer("Lambda", "f", "input", function=["gAAA", None, None])), r"layer f \(Lambda\): this kind of layer is not supported"),
    "custom": (_plain({**FLAT, "module": "evil.layers"}), r"layer f \(Flatten\): it is a custom layer of 'evil.layers'"),
    "registered": (_plain({**FLAT, "registered_name": "evil>Flatten"}), r"layer f \(Flatten\): it is a custom layer"),
    "nested": (_plain(layer("Functional", "f", "input", layers=[])), r"layer f \(Functional\): this kind of layer is not"),
    "shared": (_plain({**FLAT, "inbound_nodes": [[["input", 0, 0, {}]], [["input", 0, 0, {}]]]}), "layer 'f' is used more than once"),
    "cycle": (_plain(layer("ReLU", "a", "b"), layer("ReLU", "b", "a"), layer("Flatten", "f", "b")), "feed each other"),
    "unknown input": (_plain(layer("Flatten", "f", "nobody")), "its input 'nobody' is no layer of the model"),
    "two of a name": (_plain(FLAT, FLAT), "two layers are called f"),
    "no output": (_plain(output_layers=[]), "the model has 1 inputs and 0 outputs"),
    "channels first": (_conv(data_format="channels_first"), r"layer c \(Conv2D\): data_format = 'channels_first'"),
    "no filters": (_conv(filters=0), r"layer c \(Conv2D\): filters = 0; legal: whole numbers from 1 to 65536"),
    "negative filters": (_conv(filters=-5), "filters = -5"),
    "enormous filters": (_conv(filters=10**12), "filters = 1000000000000"),
    "filters as text": (_conv(filters="2"), "filters = '2'"),
    "a kernel above the image": (_conv(kernel_size=[30, 30]), r"layer c \(Conv2D\): it can't take \[3, 11, 9\]"),
    "a stride of zero": (_conv(strides=[0, 1]), "strides = 0; legal: whole numbers from 1"),
    "causal": (_conv(padding="causal"), "padding = 'causal'; legal: valid, same"),
    "groups": (_conv(groups=2), "3 channels to 2 can't be split into 2 groups"),
    "activation": (_conv(activation="evil"), "activation = 'evil'; legal: linear, relu"),
    "a dense layer on maps": (_plain(layer("ReLU", "f", "input")), r"layer d \(Dense\): its input is an image"),
    "units": (functional(source(11, 9, 3), FLAT, layer("Dense", "d", "f", units=2**20 - 1), layer("Dense", "e", "d", units=2**20)), "parameters; legal: at most"),
    "a bomb of padding": (_plain(layer("ZeroPadding2D", "z", "input", padding=1024), *(layer("ZeroPadding2D", f"z{n}", f"z{n - 1}" if n else "z", padding=1024) for n in range(6)), layer("Flatten", "f", "z5")), "values an image; legal"),
    "maps at the end": (functional(source(11, 9, 3), layer("ReLU", "r", "input")), r"the model gives \[3, 11, 9\] an image"),
    "flattened maps at the end": (functional(source(11, 9, 3), FLAT), "the model ends in flattened maps"),
    "axis": (_plain(layer("BatchNormalization", "b", "input", axis=[1]), layer("Flatten", "f", "b")), "axis = 1; legal: the last one"),
    "epsilon": (_plain(layer("BatchNormalization", "b", "input", epsilon="x"), layer("Flatten", "f", "b")), "epsilon = 'x'"),
    "two inputs": (_plain(FLAT, source(3, 3, 3, "other")), "the model has 2 inputs and 1 outputs"),
    "sums of two sizes": (_plain(layer("ZeroPadding2D", "z", "input"), layer("Add", "a", "z", "input"), layer("Flatten", "f", "a")), r"layer a \(Add\): it can't take"),
    "one summand": (_plain(layer("Add", "f", "input")), r"layer f \(Add\): it has 1 inputs; legal: 2 to 64"),
    "no layers": ({"class_name": "Functional", "config": {"layers": []}}, "lists no layers"),
    "layers of another kind": (_plain("evil"), "layer number 1 of its model_config is no layer"),  # type: ignore[arg-type]
    "no model": ({"class_name": "Lambda", "config": {}}, "describes 'Lambda'; legal: Sequential, Functional, Model"),
    "a list": ([1, 2], "describes no object"),
    "damaged JSON": ('{"class_name": "Seq', "is no legal JSON"),
    "NaN in JSON": ('{"class_name": NaN}', "is no legal JSON: NaN is no number"),
    "deep JSON": ("[" * 100_000, "is no legal JSON"),
    "too many layers": (_plain(*[layer("ReLU", f"r{number}", "input") for number in range(2100)]), "lists 2,102 layers"),
    "a row as input": (functional(layer("InputLayer", "input", batch_input_shape=[None, 7]), layer("Dense", "d", "input", units=4)), r"its input is \[None, 7\]; legal: images"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_description_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    config, message = BAD[name]
    path = write(tmp_path / "bad.h5", config, {})
    with pytest.raises(GauntletError, match=message) as caught:
        KerasModel(path).check(facts())
    assert "bad.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_task_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "m.h5", _plain(), {"d": drawn(1, kernel=(297, 4), bias=(4,))})
    with pytest.raises(SettingError, match=r"m.h5 takes images of 11x9x3 \(HxWxC\), and those of toy have 28x28x1"):
        KerasModel(path).check(facts((1, 28, 28)))
    with pytest.raises(SettingError, match=r"m\.h5 tells 4 classes apart, and toy has 7"):
        KerasModel(path).check(facts(classes=7))


GOOD = drawn(1, kernel=(297, 4), bias=(4,))
WEIGHTS: dict[str, tuple[Any, str]] = {
    "missing": ({"d": {"kernel": GOOD["kernel"]}}, "has no bias for the layer d"),
    "superfluous": ({"d": GOOD, "e": GOOD}, "e/e/bias:0 belongs to no layer of the model, which are: d"),
    "shape": ({"d": GOOD | {"bias": np.zeros(5, np.float32)}}, r"d/d/bias:0 has the shape \[5\]; due: \[4\]"),
    "NaN": ({"d": GOOD | {"bias": np.full(4, np.nan, np.float32)}}, "d/d/bias:0 holds NaN or infinite weights"),
    "too large for float32": ({"d": GOOD | {"bias": np.full(4, 1e300)}}, "holds NaN or infinite weights"),
    "none": ({}, "holds no weights of a Keras model"),
    "text": ({"d": GOOD | {"bias": np.array([b"a"] * 4)}}, r"d/d/bias:0 has the type \|S1; legal: whole and real numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_bad_weights_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    weights, message = WEIGHTS[name]
    path = write(tmp_path / "bad.h5", _plain(), weights)
    with pytest.raises(DataError, match=message) as caught:
        KerasModel(path).build(SHAPE, 4)
    assert "bad.h5" in str(caught.value)


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    path = write(tmp_path / "w.h5", None, {"d": GOOD}, whole=False)
    with pytest.raises(
        DataError,
        match=r"w.h5 has no model_config, so that it holds weights only: name the architecture \(--network of gauntlet "
        r"audit and eval\), or give gauntlet predict the bundle that an audit exports$",
    ):
        KerasModel(path).check(facts())
    (tmp_path / "w.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"w.json is no text in UTF-8"):
        KerasModel(tmp_path / "w.json").check(facts())
    (tmp_path / "v.json").write_text(json.dumps(_plain()))
    KerasModel(tmp_path / "v.json").check(facts())
    assert isinstance(KerasModel(tmp_path / "v.json").build(SHAPE, 4).get_submodule("d"), nn.Linear)
