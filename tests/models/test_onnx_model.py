"""ONNX models: the same logits as the reference evaluator's, and hostile files refused in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from gauntlet.cli import main
from gauntlet.errors import GauntletError
from gauntlet.formats.keras_weights import keras_arrays, load_keras
from gauntlet.maths.cut import cut
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from models.deepid import DeepId
from models.onnx_model import OnnxModel
from tests.conftest import SHARED
from tests.faces import faces
from tests.sample_scores import facts

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnx2torch", reason="the extra onnx is not installed")

Change = Callable[[Any], object]


def tensor(name: str, *sides: int, seed: int = 0) -> Any:
    values = np.random.default_rng([seed, *name.encode()]).normal(size=sides) / max(1, sides[-1])
    return onnx.numpy_helper.from_array(values.astype(np.float32), name)


def node(kind: str, sources: list[str], made: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, sources, [made], name=attributes.pop("called", ""), **attributes)


def saved(folder: Path, nodes: list[Any], tensors: list[Any], shape: list[Any], classes: int, batch: Any = 1) -> Path:
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "net", [value("x", kind, [batch, *shape])], [value("y", kind, [batch, classes])], tensors
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def as_tensorflow_saves(folder: Path, batch: Any = 1) -> Path:
    """NHWC with transposes, a flattening to a fixed batch, a product and a sum for a dense layer, a softmax."""
    nodes = [
        node("Transpose", ["x"], "t", perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w", "b"], "c", pads=[1, 1, 1, 1], called="net/conv 1"),
        node("Relu", ["c"], "r"),
        node("MaxPool", ["r"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", ["p"], "q", perm=[0, 2, 3, 1]),
        node("Reshape", ["q", "shape"], "f"),
        node("MatMul", ["f", "m"], "d"),
        node("Add", ["d", "mb"], "e", called="graph"),
        node("Softmax", ["e"], "y"),
    ]
    shape = onnx.numpy_helper.from_array(np.array([1 if batch == 1 else -1, 64]), "shape")
    return saved(folder, nodes, [tensor("w", 4, 3, 3, 3), tensor("b", 4), tensor("m", 64, 5), tensor("mb", 5), shape],
                 [8, 8, 3], 5, batch)  # fmt: skip


def as_torch_saves(folder: Path) -> Path:
    """NCHW, a residual sum, batch normalisation, global pooling, a Gemm."""
    around = tensor("var", 4)
    around.CopyFrom(onnx.numpy_helper.from_array(np.linspace(0.5, 2, 4, dtype=np.float32), "var"))
    nodes = [
        node("Conv", ["x", "w"], "c", pads=[1, 1, 1, 1], called="conv.1"),
        node("BatchNormalization", ["c", "s", "o", "mean", "var"], "n"),
        node("Relu", ["n"], "r"),
        node("Conv", ["r", "v"], "k", called="conv.2"),
        node("Add", ["r", "k"], "a"),
        node("GlobalAveragePool", ["a"], "g"),
        node("Flatten", ["g"], "f", axis=1),
        node("Gemm", ["f", "m", "mb"], "y", transB=1),
    ]
    tensors = [tensor("w", 4, 3, 3, 3), tensor("s", 4), tensor("o", 4), tensor("mean", 4), around,
               tensor("v", 4, 4, 1, 1), tensor("m", 5, 4), tensor("mb", 5)]  # fmt: skip
    return saved(folder, nodes, tensors, [3, 8, 8], 5)


def expected(path: Path, images: torch.Tensor, *, channels_last: bool) -> torch.Tensor:
    """Image by image, by the reference evaluator of ONNX."""
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(onnx.load(path))
    shown = images.permute(0, 2, 3, 1) if channels_last else images
    return torch.cat([torch.from_numpy(session.run(None, {"x": one[None].numpy()})[0]) for one in shown])


@pytest.mark.parametrize("input_range", ["0..1", "0..255"])
def test_a_model_from_tensorflow(tmp_path: Path, input_range: Any) -> None:
    path = as_tensorflow_saves(tmp_path)
    model = OnnxModel(path, input_range)
    assert model.declared() == ((3, 8, 8), 5)
    body = model.build((3, 8, 8), 5).eval()
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = expected(path, images * (255 if input_range == "0..255" else 1), channels_last=True)
    torch.testing.assert_close(body(images).softmax(1), wanted, atol=1e-5, rtol=1e-4)
    # Layers that can be trained and pruned, the softmax gone, a name that a module can't have changed.
    assert sorted(name for name, _ in body.named_parameters()) == [
        *("layers.gemm_6.bias", "layers.gemm_6.weight", "layers.net_conv_1.bias", "layers.net_conv_1.weight")
    ]
    assert model.taps(body) == ("layers.features", "layers.net_conv_1")


def test_a_model_from_torch_can_be_tapped_cut_and_trained(tmp_path: Path) -> None:
    path = as_torch_saves(tmp_path)
    body = OnnxModel(path).build((3, 8, 8), 5).eval()
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(body(images), expected(path, images, channels_last=False), atol=1e-5, rtol=1e-4)
    feature, conv = OnnxModel(path).taps(body)
    assert conv == "layers.conv_2"
    seen: list[torch.Tensor] = []
    body.get_submodule(feature).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    logits = body(images)
    head = body.get_submodule("layers.gemm_7")
    torch.testing.assert_close(head(seen[0]), logits)
    assert cut(body, conv) is not None
    fx.symbolic_trace(body)
    logits.sum().backward()
    assert all(value.grad is not None for value in body.parameters())


def test_the_batch_may_be_free_and_the_sides_too(tmp_path: Path) -> None:
    assert OnnxModel(as_tensorflow_saves(tmp_path, "batch")).declared() == ((3, 8, 8), 5)
    path = as_torch_saves(tmp_path)
    proto = onnx.load(path)
    for side in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_param = "side"
    onnx.save(proto, path)
    model = OnnxModel(path)
    assert model.declared() is None
    assert model.build((3, 12, 10), 5)(torch.rand(2, 3, 12, 10)).shape == (2, 5)


def test_a_copy_needs_no_other_file(tmp_path: Path) -> None:
    path = as_torch_saves(tmp_path)
    (tmp_path / "bundle").mkdir()
    copy = OnnxModel(path).portable(tmp_path / "bundle")
    images = torch.rand(2, 3, 8, 8)
    wanted = OnnxModel(path).build((3, 8, 8), 5).eval()(images)
    path.unlink()
    assert torch.equal(copy.build((3, 8, 8), 5).eval()(images), wanted)
    with torch.device("meta"):
        assert all(value.is_meta for value in copy.build((3, 8, 8), 5).parameters())


def exported(body: nn.Module, shape: tuple[int, int, int], path: Path) -> Path:
    try:
        torch.onnx.export(body.eval(), (torch.rand(1, *shape),), str(path), dynamo=False)
    except Exception as error:  # later versions of torch may need another library for it
        pytest.skip(f"this torch can't export without further libraries: {error}")
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["simple_cnn", "le_net", "resnet18", "preact_resnet18", "vgg16"])
def test_what_torch_exports_comes_back(name: str, registry: Registry, tmp_path: Path) -> None:
    settings = {"width": 8} if "resnet" in name else {}
    shape = (3, 32, 32)
    body = registry.build(Kind.MODEL, name, settings).build(shape, 10).eval()
    path = exported(body, shape, tmp_path / "net.onnx")
    images = torch.rand(3, *shape)
    torch.testing.assert_close(OnnxModel(path).build(shape, 10).eval()(images), body(images), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_real_badnet_gives_the_same_logits(tmp_path: Path) -> None:
    weights = SHARED / "csaw" / "sunglasses_bd_weights.h5"
    if not weights.exists():
        pytest.skip("../shared/data/csaw is absent")
    shape = (3, 55, 47)
    body = DeepId().build(shape, 1283).eval()
    load_keras(body, keras_arrays(weights), shape, weights.name)
    images = faces(50, seed=7).float() / 255
    found = OnnxModel(exported(body, shape, tmp_path / "net.onnx")).build(shape, 1283).eval()(images)
    torch.testing.assert_close(found, body(images), atol=1e-4, rtol=1e-4)


def _nan(proto: Any) -> None:
    values = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    values.flat[3] = np.nan
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w"))


def _external(proto: Any) -> None:
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    proto.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def _gigantic(proto: Any) -> None:
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend([1 << 20, 1 << 20, 3, 3])


def _negative(proto: Any) -> None:
    proto.graph.initializer[0].dims[0] = -4


def _large_image(proto: Any) -> None:
    for side in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_value = 1 << 20


def _operator(kind: str, domain: str = "") -> Change:
    def change(proto: Any) -> None:
        proto.graph.node[2].op_type = kind
        proto.graph.node[2].domain = domain

    return change


def _half(proto: Any) -> None:
    values = onnx.numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float16)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "w"))


def _two_inputs(proto: Any) -> None:
    proto.graph.input.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 3]))


def _channels(proto: Any) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    proto.graph.initializer[0].CopyFrom(tensor("w", 4, 7, 3, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_nan, "w holds NaN or infinite weights"),
        (_external, "w: weights in another file are not read"),
        (_gigantic, "w declares"),
        (_negative, "w declares [-4, 3, 3, 3]"),
        (_large_image, "values an image; legal"),
        (_operator("Loop"), "operator 'r': Loop is not supported"),
        (_operator("NonMaxSuppression"), "NonMaxSuppression is not supported"),
        (_operator("Relu", "com.evil"), "com.evil.Relu is not supported"),
        (_half, "w is of type FLOAT16"),
        (_two_inputs, "2 inputs and 1 outputs"),
        (_channels, "with 1 or 3 channels"),
        (lambda proto: proto.graph.initializer.pop(), "no valid ONNX model"),
        (lambda proto: proto.graph.ClearField("node"), "no ONNX model, or an empty one"),
    ],
)
def test_hostile_files_are_one_line_and_leave_nothing(
    change: Change, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_torch_saves(tmp_path)
    proto = onnx.load(path)
    change(proto)
    path.write_bytes(proto.SerializeToString())
    refused(path, words, tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("content", [b"", b"\x80\x04}", b"PK\x03\x04 not a model", b"\x08\x07" * 40])
def test_what_is_no_onnx_is_said(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    refused(tmp_path / "net.onnx", "is no ONNX model", tmp_path, capsys, monkeypatch)


def refused(
    path: Path, words: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = folder / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    code = main(["audit", f"--model={path}", f"--clean={path.parent}", f"--store={empty / 'store'}"])
    said = capsys.readouterr().err
    assert code == 2
    assert words in said
    assert str(path) in said
    assert said.count("\n") == 1
    assert not (empty / "results").exists()


def test_without_the_extra_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(GauntletError, match=r"pip install 'backdoor-gauntlet\[onnx\]'"):
        OnnxModel(as_torch_saves(tmp_path)).declared()


def test_another_task_is_refused(tmp_path: Path) -> None:
    model = OnnxModel(as_torch_saves(tmp_path))
    with pytest.raises(GauntletError, match="takes images of 8x8x3"):
        model.check(facts())
    with pytest.raises(GauntletError, match="tells 5 classes apart, and digits has 10"):
        model.check(facts(shape=(3, 8, 8)))


def test_the_record_says_which_file(tmp_path: Path, registry: Registry) -> None:
    model = registry.build(Kind.MODEL, "onnx_model", {"path": str(as_torch_saves(tmp_path))})
    assert model.origin().startswith("from the file net.onnx (sha256 ")
