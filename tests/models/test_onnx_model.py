"""ONNX models written by hand, against ONNX's own reference implementation; and what is refused."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gauntlet.assembly import assemble, mould, wrap
from gauntlet.errors import DataError, GauntletError, SettingError
from gauntlet.facts import TaskFacts
from gauntlet.formats.onnx_files import read_onnx
from gauntlet.maths.cut import cut
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.settings import values
from gauntlet.toolbox import describe
from models._graph import Body
from models.onnx_model import OnnxModel
from tests.onnx_files import Array, answers, drawn, exported, library, node, proto, write

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnx2torch", reason="the extra onnx is not installed")
SHAPE = (3, 11, 9)


def facts(shape: tuple[int, int, int] = SHAPE, classes: int = 4) -> TaskFacts:
    counts = (10,) * classes
    return TaskFacts("toy", shape, tuple(map(str, range(classes))), counts, counts, counts, "0" * 64, "made up")


def images(count: int = 5, shape: tuple[int, ...] = SHAPE) -> Array:
    return np.random.default_rng(1).random((count, *shape)).astype(np.float32)


def built(path: Path, classes: int = 4, **settings: Any) -> Body:
    model = OnnxModel(path, **settings)
    model.check(facts(classes=classes))
    body = model.build(SHAPE, classes).eval()
    assert isinstance(body, Body)
    return body


def logits(body: nn.Module, given: Array) -> Array:
    with torch.no_grad():
        found: Array = body(torch.from_numpy(given)).numpy()
    return found


CONV = node("Conv", "images w b", "c", "conv", pads=[1, 1, 1, 1])
GEMM = node("Gemm", "f m r", "logits", "dense", transB=1)
FLAT = node("Flatten", "c", "f", "flat")
ARRAYS = drawn(0, w=(5, 3, 3, 3), b=(5,), m=(4, 495), r=(4,))


def ending(*nodes: Any, source: str = "c", side: int = 495, **arrays: Any) -> tuple[list[Any], Any]:
    """`nodes` from the convolution's output c to `source`, flattened, with a dense layer behind."""
    tail = [node("Flatten", source, "f", "flat"), GEMM]
    return [CONV, *nodes, *tail], ARRAYS | drawn(3, m=(4, side)) | arrays


def whole(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


GOOD: dict[str, tuple[list[Any], Any, int]] = {
    "plain": (*ending(), 17),
    "relu": (*ending(node("Relu", "c", "x"), source="x"), 13),
    "an old one": (*ending(node("Relu", "c", "x"), source="x"), 9),
    "a new one": (*ending(node("Relu", "c", "x"), node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2]), source="y", side=100), 22),
    "leaky": (*ending(node("LeakyRelu", "c", "x", alpha=0.2), source="x"), 17),
    "sigmoid and product": (*ending(node("Sigmoid", "c", "s"), node("Mul", "c s", "x"), source="x"), 17),
    "relu6": (*ending(node("Clip", "c low high", "x"), source="x", low=np.float32(0).reshape(()), high=np.float32(1).reshape(())), 17),
    "gelu": (*ending(node("Gelu", "c", "x"), source="x"), 20),
    "tanh gelu": (*ending(node("Gelu", "c", "x", approximate="tanh"), source="x"), 20),
    "average with padding": (*ending(node("AveragePool", "c", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), source="x", side=150), 17),
    "average of opset 19": (*ending(node("AveragePool", "c", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1), source="x"), 20),
    "global average": (*ending(node("GlobalAveragePool", "c", "x"), source="x", side=5), 17),
    "mean by attribute": (*ending(node("ReduceMean", "c", "x", axes=[2, 3], keepdims=0), source="x", side=5), 13),
    "mean by input": (*ending(node("ReduceMean", "c axes", "x", keepdims=0, noop_with_empty_axes=0), source="x", side=5, axes=whole(2, 3)), 18),
    "sum by input": (*ending(node("ReduceSum", "c axes", "x", keepdims=1), source="x", side=45, axes=whole(-1 - 1)), 13),
    "uneven pad": (*ending(node("Pad", "c pads", "x"), source="x", side=5 * 13 * 10, pads=whole(0, 0, 2, 0, 0, 0, 0, 1)), 18),
    "reflected pad": (*ending(node("Pad", "c pads", "x", mode="reflect"), source="x", side=5 * 13 * 11, pads=whole(0, 0, 1, 1, 0, 0, 1, 1)), 13),
    "batch norm": (*ending(node("BatchNormalization", "c g h i v", "x", epsilon=0.01), source="x", **drawn(5, g=(5,), h=(5,), i=(5,)), v=np.arange(1, 6).astype(np.float32)), 15),
    "concat": (*ending(node("Relu", "c", "x"), node("Concat", "c x", "y", axis=1), source="y", side=990), 17),
    "residual": (*ending(node("Conv", "c w2", "x", pads=[1, 1, 1, 1]), node("Add", "x c", "y"), source="y", **drawn(6, w2=(5, 5, 3, 3))), 17),
    "grouped and dilated": (*ending(node("Conv", "c w2", "x", group=5, dilations=[2, 2], pads=[2, 2, 2, 2]), source="x", **drawn(6, w2=(5, 1, 3, 3))), 17),
    "same upper": (*ending(node("Conv", "c w2", "x", auto_pad="SAME_UPPER", strides=[2, 2]), source="x", side=7 * 30, **drawn(6, w2=(7, 5, 2, 2))), 17),
    "same lower": (*ending(node("MaxPool", "c", "x", auto_pad="SAME_LOWER", kernel_shape=[2, 2]), source="x"), 17),
    "a constant scale": (*ending(node("Mul", "c scale", "x"), source="x", **drawn(6, scale=(1, 5, 1, 1))), 17),
    "transposed": (*ending(node("Transpose", "c", "x", perm=[0, 2, 3, 1]), source="x"), 17),
    "reshape": ([CONV, node("Reshape", "c shape", "f"), GEMM], ARRAYS | {"shape": whole(-1, 495)}, 14),
    "reshape by the input's sides": ([CONV, node("Shape", "images", "s"), node("Gather", "s zero", "n", axis=0), node("Concat", "n rest", "shape", axis=0), node("Reshape", "c shape", "f"), GEMM], ARRAYS | {"zero": whole(0), "rest": whole(-1)}, 17),
    "two reshapes": (*ending(node("Reshape", "c shape", "x"), node("Transpose", "x", "y", perm=[0, 2, 1]), source="y", shape=whole(0, 5, -1)), 17),
    "squeeze": (*ending(node("GlobalAveragePool", "c", "x"), node("Squeeze", "x axes", "y"), source="y", side=5, axes=whole(2, 3)), 13),
    "matrix and row": ([CONV, FLAT, node("MatMul", "f m", "p", "matmul"), node("Add", "r p", "logits", "add")], ARRAYS | drawn(8, m=(495, 4)), 17),
    "matrix": ([CONV, FLAT, node("MatMul", "f m", "logits")], ARRAYS | drawn(8, m=(495, 4)), 17),
    "constant nodes": ([library().helper.make_node("Constant", [], ["w"], value=library().numpy_helper.from_array(ARRAYS["w"])), node("Identity", "r", "r2"), CONV, FLAT, node("Gemm", "f m r2", "logits", transB=1)], {name: array for name, array in ARRAYS.items() if name != "w"}, 17),
    "dropout": (*ending(node("Dropout", "c", "x"), source="x"), 17),
    "nameless twins": (*ending(node("Relu", "c", "x"), node("Relu", "x", "y"), source="y"), 17),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_logits_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    nodes, arrays, opset = GOOD[name]
    path = write(tmp_path / "m.onnx", proto(nodes, arrays, opset=opset))

    np.testing.assert_allclose(logits(built(path), images()), answers(path, images()), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["relu6", "leaky", "global average", "mean by input", "batch norm", "concat", "uneven pad"]
)
def test_the_newest_opset_is_read(name: str, tmp_path: Path) -> None:
    nodes, arrays, _ = GOOD[name]
    newest = library().defs.onnx_opset_version()
    path = write(tmp_path / "m.onnx", proto(nodes, arrays, opset=newest))

    np.testing.assert_allclose(logits(built(path), images()), answers(path, images()), atol=1e-5)


def test_weights_are_parameters_and_constants_are_not(tmp_path: Path) -> None:
    nodes, arrays, _ = GOOD["matrix and row"]
    scale = node("Mul", "images scale", "scaled", "scale")
    nodes = [scale, node("Conv", "scaled w b", "c", "conv", pads=[1, 1, 1, 1]), *nodes[1:]]
    path = write(tmp_path / "m.onnx", proto(nodes, arrays | drawn(1, scale=(3, 1, 1))))
    body = built(path)

    assert {name for name, _ in body.named_parameters()} == {"conv.weight", "conv.bias", "matmul.weight", "matmul.bias"}
    assert isinstance(body.get_submodule("matmul"), nn.Linear)
    assert OnnxModel(path).taps(body) == ("flat", "conv")
    assert OnnxModel(path, feature_layer_name="conv").taps(body) == ("conv", "conv")
    with pytest.raises(SettingError, match=r"last_conv_name = 'flat' is no convolution of .*m\.onnx"):
        OnnxModel(path, last_conv_name="flat").taps(body)
    with pytest.raises(
        SettingError, match=r"feature_layer_name = 'x': .*m\.onnx has no such layer; it has: scale, conv"
    ):
        OnnxModel(path, feature_layer_name="x").taps(body)


@pytest.mark.parametrize("kind", ["Softmax", "Sigmoid"])
def test_a_squashing_end_is_dropped(kind: str, tmp_path: Path) -> None:
    tail = node(kind, "l", "logits")
    nodes = [CONV, FLAT, node("Gemm", "f m r", "l", transB=1), tail]
    squashed = write(tmp_path / "a.onnx", proto(nodes, ARRAYS))
    plain = write(tmp_path / "b.onnx", proto([CONV, FLAT, GEMM], ARRAYS))

    np.testing.assert_allclose(logits(built(squashed), images()), answers(plain, images()), atol=1e-5)
    assert np.ptp(answers(squashed, images()).sum(1)) < 1e-5 or kind == "Sigmoid"


@pytest.mark.parametrize("target", [(1, 495), (1, -1)])
@pytest.mark.parametrize("allowed", [0, 1])
def test_a_batch_of_one_that_an_exporter_wrote_down_becomes_any(
    target: tuple[int, ...], allowed: int, tmp_path: Path
) -> None:
    nodes = [CONV, node("Reshape", "c shape", "f", allowzero=allowed), GEMM]
    made = proto(nodes, ARRAYS | {"shape": whole(*target)}, (1, 3, 11, 9))
    path = write(tmp_path / "m.onnx", made)
    one_by_one = np.concatenate([answers(path, images()[row : row + 1]) for row in range(5)])

    np.testing.assert_allclose(logits(built(path), images()), one_by_one, atol=1e-5)


def test_channels_may_come_last(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "images", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w b", "c", pads=[1, 1, 1, 1]),
        FLAT,
        GEMM,
    ]
    path = write(tmp_path / "m.onnx", proto(nodes, ARRAYS, ("N", 11, 9, 3)))

    assert OnnxModel(path).declared() == (SHAPE, 4)
    np.testing.assert_allclose(logits(built(path), images()), answers(path, images().transpose(0, 2, 3, 1)), atol=1e-5)


def test_raw_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", proto([CONV, FLAT, GEMM], ARRAYS))

    found = logits(built(path, input_range="0..255"), images())
    np.testing.assert_allclose(found, answers(path, images() * 255), atol=1e-2, rtol=1e-4)


def test_a_network_of_torch_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = {
        "conv": nn.Conv2d(3, 8, 3, padding=1), "norm": nn.BatchNorm2d(8), "relu": nn.ReLU(), "pool": nn.MaxPool2d(2),
        "flat": nn.Flatten(), "dense": nn.Linear(8 * 5 * 4, 4),
    }  # fmt: skip
    network = nn.Sequential(*layers.values())
    network(torch.rand(64, *SHAPE))
    network.eval()
    path = write(tmp_path / "m.onnx", proto(*exported(layers.items())))
    body = built(path)

    np.testing.assert_allclose(logits(body, images()), logits(network, images()), atol=1e-5)
    assert [name for name, _ in body.steps] == ["input", *layers]
    assert sum(item.numel() for item in body.parameters()) == sum(item.numel() for item in network.parameters())


def test_it_is_traced_copied_and_trained(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", proto(*GOOD["batch norm"][:2], opset=15))
    model = OnnxModel(path)
    network = wrap(model, facts(), (0.5,) * 3, (0.25,) * 3)
    given = torch.from_numpy(images())
    copy = assemble(mould(model, facts(), (0.5,) * 3, (0.25,) * 3), network.state_dict()).eval()
    parts = cut(network.body.eval(), "conv")

    with torch.no_grad():
        assert torch.equal(copy(given), network.eval()(given))
        assert parts is not None
        normalised = network.normalise(given)
        maps = parts.front(normalised)
        torch.testing.assert_close(parts.rest(*maps), network.body(normalised))
    network.train()(given).sum().backward()
    assert all(item.grad is not None and item.grad.abs().sum() > 0 for item in network.parameters())


def test_it_needs_no_file_but_its_own_copy(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", proto([CONV, FLAT, GEMM], ARRAYS))
    before = logits(built(path), images())
    (tmp_path / "bundle").mkdir()
    moved = OnnxModel(path).portable(tmp_path / "bundle")
    path.unlink()

    assert isinstance(moved, OnnxModel)
    assert np.array_equal(logits(built(moved.path), images()), before)


def test_it_is_a_plug_in_that_reads_onnx(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", proto([CONV, FLAT, GEMM], ARRAYS))
    cls = Registry.discover().get(Kind.MODEL, "onnx_model")

    assert cls.reads == (".onnx",)
    assert values(OnnxModel(path))["path"] == str(path)
    assert OnnxModel(path).origin().startswith("from the file m.onnx (sha256 ")
    assert "by onnx2torch " in OnnxModel(path).origin()
    before = describe(OnnxModel(path))
    write(path, proto([CONV, FLAT, GEMM], ARRAYS | drawn(9, r=(4,))))
    assert before != describe(OnnxModel(path))
    assert {**before, "contents": None} == {**describe(OnnxModel(path)), "contents": None}


def test_code_in_names_is_never_run(tmp_path: Path) -> None:
    """onnx2torch's own conversion makes Python code of a node's name."""
    mark = tmp_path / "mark"
    evil = f'x")\nopen({str(mark)!r}, "w")\n("'
    nodes = [node("Conv", "images w b", "c", evil, pads=[1, 1, 1, 1]), FLAT, GEMM]
    nodes[0].name = evil
    path = write(tmp_path / "m.onnx", proto(nodes, ARRAYS))
    body = built(path)

    logits(body, images())
    assert cut(body, body.last_conv() or "") is not None
    assert not mark.exists()
    assert all(name.isidentifier() for name, _ in body.steps)


# --- What is refused ------------------------------------------------------------------------------------------------


def _changed(change: Callable[[Any], object]) -> Any:
    made = proto([CONV, FLAT, GEMM], ARRAYS)
    change(made)
    return made


def _poisoned(name: str, array: Array) -> Any:
    return proto([CONV, FLAT, GEMM], ARRAYS | {name: array})


def _external(made: Any) -> None:
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = library().TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def _huge(made: Any) -> None:
    made.graph.initializer[0].dims[:] = [1 << 20, 1 << 20, 3, 3]


def _between(*nodes: Any, source: str = "x", opset: int = 17, **arrays: Any) -> Any:
    return proto([CONV, *nodes, node("Flatten", source, "f"), GEMM], ARRAYS | arrays, opset=opset)


BAD: dict[str, tuple[Any, str]] = {
    "empty": (b"", "is no ONNX model: it holds no nodes"),
    "text": (b"this is no model", "is no ONNX file, or a damaged one"),
    "a pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", "is no ONNX file, or a damaged one"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "is no ONNX"),
    "truncated": (_changed(lambda made: None).SerializeToString()[:-500], "is no ONNX file, or a damaged one"),
    "weights in another file": (_changed(_external), "the tensor w keeps its values in another file; save the model as one"),
    "gigantic weights": (_changed(_huge), r"the tensor w is declared as \[1048576, 1048576, 3, 3\]; legal: at most"),
    "negative sides": (_changed(lambda made: made.graph.initializer[0].dims.__setitem__(0, -5)), r"the tensor w is declared as \[-5,"),
    "fewer values than declared": (_changed(lambda made: made.graph.initializer[0].dims.__setitem__(0, 6)), r"the tensor w is declared as \[6, 3, 3, 3\], but the file holds other values"),
    "values twice": (_changed(lambda made: made.graph.initializer[0].float_data.append(1)), "the tensor w is declared as .* but the file holds other values"),
    "NaN": (_poisoned("b", np.full(5, np.nan, np.float32)), "the tensor b holds NaN or infinite values"),
    "infinity": (_poisoned("b", np.array([1, 2, 3, 4, np.inf], np.float32)), "the tensor b holds NaN or infinite values"),
    "half": (_poisoned("b", np.zeros(5, np.float16)), "the tensor b has ONNX's type 10; legal: float32"),
    "text as weights": (_poisoned("b", np.array(["a"] * 5, object)), "the tensor b has ONNX's type 8; legal: float32"),
    "opset of the future": (proto([CONV, FLAT, GEMM], ARRAYS, opset=999), "is of ONNX opset 999; legal: 9 to"),
    "opset of old": (proto([CONV, FLAT, GEMM], ARRAYS, opset=6), "is of ONNX opset 6; legal: 9 to"),
    "another domain": (_changed(lambda made: setattr(made.graph.node[0], "domain", "com.evil")), r"node conv \(Conv\): an operator of com.evil; legal: ONNX's own"),
    "an unknown operator": (_between(node("Evil", "c", "x", "evil")), "is no legal ONNX model: "),
    "an unsupported operator": (_between(node("Einsum", "c", "x", "trick", equation="abcd->abcd")), r"node trick \(Einsum\): this operator is not supported; legal: Abs, Add"),
    "one without a name": (_between(node("Sin", "c", "x")), r"node number 1 \(Sin\): this operator is not supported"),
    "a loop": (_between(library().helper.make_node("If", ["y"], ["x"], then_branch=library().helper.make_graph([], "g", [], []), else_branch=library().helper.make_graph([], "g", [], [])), node("Identity", "c", "y")), r"node number 1 \(If\): it holds a graph of its own"),
    "a name on two lines": (_between(node("Sin", "c", "x", "a\nb")), r"node a\?b \(Sin\): this operator"),
    "functions": (_changed(lambda made: made.functions.add(name="f", domain="d")), "has functions, sparse weights or a training graph"),
    "sparse weights": (_changed(lambda made: made.graph.sparse_initializer.add()), "has functions, sparse weights or a training graph"),
    "two inputs": (_changed(lambda made: made.graph.input.append(library().helper.make_tensor_value_info("more", 1, [1]))), "the model has 2 inputs and 1 outputs; legal: one of each"),
    "two outputs": (_changed(lambda made: made.graph.output.append(library().helper.make_tensor_value_info("c", 1, ["N", 5, 11, 9]))), "the model has 1 inputs and 2 outputs; legal: one of each"),
    "a row as input": (proto([node("Gemm", "images m r", "logits", transB=1)], ARRAYS, ("N", 495)), r"its input images is \[any, 495\] of ONNX's type 1; legal: float32 images"),
    "whole numbers as input": (_changed(lambda made: setattr(made.graph.input[0].type.tensor_type, "elem_type", 2)), "of ONNX's type 2; legal: float32 images"),
    "gigantic input": (proto([CONV, FLAT, GEMM], ARRAYS, ("N", 3, 1 << 40, 9)), "at most 16384 pixels a side"),
    "a cycle": (_between(node("Add", "c y", "x"), node("Relu", "x", "y")), "is no legal ONNX model: "),
    "a value from nowhere": (_between(node("Add", "c nothing", "x")), "is no legal ONNX model: "),
    "shapes that contradict": (_poisoned("m", np.zeros((4, 7), np.float32)), "its shapes don't fit together: "),
    "a kernel that isn't its weights'": (_changed(lambda made: made.graph.node[0].attribute.append(library().helper.make_attribute("kernel_shape", [1 << 20, 1 << 20]))), r"shapes don't fit together|kernel_shape is not that of its weights"),
    "a bomb of padding": (_between(node("Pad", "c pads", "x", "bomb"), node("GlobalAveragePool", "x", "y"), source="y", m=np.zeros((4, 5), np.float32), pads=whole(0, 0, 1 << 20, 1 << 20, 0, 0, 0, 0)), r"node bomb \(Pad\): it would give \[5, 1048587, 1048585\] values an image"),
    "a bias of another size": (_poisoned("b", np.zeros(4, np.float32)), "shapes don't fit together|the model can't be run|node conv"),
    "computed weights": (proto([node("Relu", "w", "w2"), node("Conv", "images w2", "c", "conv", pads=[1, 1, 1, 1]), FLAT, GEMM], ARRAYS), r"node conv \(Conv\): its weights are computed"),
    "computed padding": (_between(node("Shape", "images", "s"), node("Concat", "s s", "pads", axis=0), node("Pad", "c pads", "x", "pad")), r"node pad \(Pad\): "),
    "a batch as one image": (_between(node("Reshape", "c shape", "x", "mix"), shape=whole(1, -1)), r"node mix \(Reshape\): it makes \[1, 48015\] of a batch of 97|shapes don't fit"),
    "a mean over the batch": (_between(node("ReduceMean", "c", "y", axes=[0], keepdims=1), node("Add", "y c", "x")), "the answer for an image depends on the others of its batch"),
    "maps at the end": (proto([node("Conv", "images w b", "logits", "conv")], ARRAYS), r"node conv \(Conv\): the model gives \[5, 9, 7\] an image; legal: one value for each class"),
    "an output of no node": (_changed(lambda made: setattr(made.graph.output[0], "name", "images")), "is no legal ONNX model|don't depend"),
    "nothing to train": (proto([node("GlobalAveragePool", "images", "x"), node("Flatten", "x", "logits")], {}), "the model has 0 parameters; legal: 1 to"),
    "infinite answers": (_between(node("Mul", "c big", "y"), node("Mul", "y big", "x"), big=np.float32(3e38).reshape(())), "the model gives values that are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    made, message = BAD[name]
    path = tmp_path / "bad.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())

    with pytest.raises(GauntletError, match=message) as caught:
        OnnxModel(path).check(facts())
    assert "bad.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """protobuf hands such a name over as bytes."""
    made = proto([CONV, FLAT, GEMM], ARRAYS).SerializeToString()
    assert made.count(b"conv") == 1
    (tmp_path / "m.onnx").write_bytes(made.replace(b"conv", b"c\xff\xfev"))
    (tmp_path / "bad.onnx").write_bytes(made.replace(b"conv", b"c\xff\xfev").replace(b"Conv", b"Con\xff"))

    assert built(tmp_path / "m.onnx").last_conv() == "c__v"
    with pytest.raises(DataError, match=r"bad\.onnx"):
        built(tmp_path / "bad.onnx")


def test_what_was_changed_at_random_is_read_or_refused(tmp_path: Path) -> None:
    """Twenty thousand such files, made once, gave the two cases above."""
    random = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    forms = [proto(nodes, arrays, opset=opset).SerializeToString() for nodes, arrays, opset in GOOD.values()]
    said: list[str] = []
    for _ in range(400):
        changed = bytearray(forms[random.integers(len(forms))])
        for _ in range(random.integers(1, 4)):
            # The graph stands at the start and at the end, and the arrays between.
            place = int(random.choice([random.integers(700), len(changed) - 1 - random.integers(300)]))
            changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            OnnxModel(path).check(facts())
        except GauntletError as error:
            said.append(str(error))
    assert 100 < len(said) < 400
    assert all("m.onnx" in message and "\n" not in message for message in said)


def test_a_file_that_is_absent_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.onnx can't be read: No such file"):
        read_onnx(tmp_path / "gone.onnx")
    with (tmp_path / "big.onnx").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(DataError, match=r"big\.onnx has 1,073,741,825 bytes; legal: at most 1,073,741,824"):
        read_onnx(tmp_path / "big.onnx")


def test_another_task_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", proto([CONV, FLAT, GEMM], ARRAYS))

    with pytest.raises(SettingError, match=r"m\.onnx takes images of 3x11x9 \(CxHxW\), and these are 1x28x28"):
        OnnxModel(path).check(facts((1, 28, 28)))
    with pytest.raises(SettingError, match=r"m\.onnx tells 4 classes apart, and toy has 7"):
        OnnxModel(path).check(facts(classes=7))


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.onnx", proto([CONV, FLAT, GEMM], ARRAYS))
    for package in ("onnx", "onnx2torch.onnx_graph"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(DataError, match=r"needs onnx and onnx2torch: pip install backdoor-gauntlet\[onnx\]"):
                OnnxModel(path).check(facts())


def test_the_torch_exporter(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch's own exporter needs onnxscript")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 4)
    )
    network.eval()
    path = tmp_path / "m.onnx"
    importlib.import_module("torch.onnx").export(
        network, (torch.rand(1, *SHAPE),), path, dynamo=True, external_data=False, verbose=False
    )

    np.testing.assert_allclose(logits(built(path), images()), logits(network, images()), atol=1e-5)
