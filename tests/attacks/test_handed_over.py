"""Models that somebody handed over: their weights in every form, suspected triggers, poisoned files."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from attacks.handed_over import HandedOver, PastedTrigger
from gauntlet.assembly import wrap
from gauntlet.case import Case, label
from gauntlet.errors import DataError, GauntletError, SettingError
from gauntlet.facts import TaskFacts
from gauntlet.formats.keras_weights import keras_arrays, load_keras
from gauntlet.mounting import mount
from gauntlet.network import Network
from gauntlet.pipeline import Context, tools_for
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.settings import build, changed, paths_in, tag, values
from gauntlet.testsets import TestSets
from models.deepid import DeepId
from models.simple_cnn import SimpleCnn
from tests.conftest import SHARED
from tests.keras_files import drawn, functional, layer, source, write
from tests.sample_cases import CaseMaker

h5py = pytest.importorskip("h5py")
GREY = (1, 28, 28)
State = dict[str, Tensor]


def facts(shape: tuple[int, int, int] = GREY, classes: int = 10) -> TaskFacts:
    counts = (10,) * classes
    return TaskFacts("toy", shape, tuple(map(str, range(classes))), counts, counts, counts, "0" * 64, "made up")


@pytest.fixture
def network() -> Network:
    made = wrap(SimpleCnn(), facts(), (0.25,), (0.5,))
    for name, value in made.state_dict().items():
        if value.is_floating_point() and name.startswith("body"):
            value.uniform_(0.1, 0.9)
    return made.eval()


def mounted(attack: HandedOver, context: Context, make_case: CaseMaker) -> Network:
    case = dataclasses.replace(make_case("none"), attack=attack)
    made = mount(attack, tools_for(case, 0, context)).value
    assert not made.poisoned.any()
    return made.network


def shown(count: int = 4) -> Tensor:
    return torch.rand(count, *GREY, generator=torch.Generator().manual_seed(0))


def picture(path: Path, width: int, height: int, pixel: tuple[int, ...]) -> Path:
    Image.new("RGBA" if len(pixel) == 4 else "RGB", (width, height), pixel).save(path)
    return path


def poison(path: Path, labels: Any, shape: tuple[int, ...] = GREY) -> Path:
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(len(labels)).reshape(-1, 1, 1, 1) * np.ones(shape, "u1")
        file["label"] = np.asarray(labels)
    return path


def body_of(network: Network) -> State:
    return {name: value.clone() for name, value in network.body.state_dict().items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("whole", [False, True])
def test_weights_come_in_many_forms(
    suffix: str, prefix: str, whole: bool, network: Network, tmp_path: Path, context: Context, make_case: CaseMaker
) -> None:
    state = network.state_dict() if whole else network.body.state_dict()
    path = tmp_path / f"weights{suffix}"
    named = {prefix + name: value.clone() for name, value in state.items()}
    save_file(named, path) if suffix == ".safetensors" else torch.save({"state_dict": named, "epoch": 3}, path)

    made = mounted(HandedOver(path), context, make_case)

    due = network(shown()) if whole else network.body(shown())
    torch.testing.assert_close(made(shown()), due)


def test_the_raw_range_and_a_normalisation_are_the_networks_first_layer(
    network: Network, tmp_path: Path, context: Context, make_case: CaseMaker
) -> None:
    save_file(body_of(network), path := tmp_path / "w.safetensors")

    raw = mounted(HandedOver(path, input_range="0..255"), context, make_case)
    normal = mounted(HandedOver(path, mean=(0.25,), std=(0.5,)), context, make_case)

    torch.testing.assert_close(raw.normalise(shown()), shown() * 255)
    torch.testing.assert_close(normal(shown()), network(shown()))


def test_keras_weights_fill_the_layers_of_their_names(tmp_path: Path, context: Context, make_case: CaseMaker) -> None:
    """simple_cnn as a Keras file: the dense layer's inputs are in channels-last order there."""
    weights = {
        "conv1": drawn(1, kernel=(5, 5, 1, 16)),
        "norm1": drawn(2, gamma=(16,), beta=(16,), moving_mean=(16,), moving_variance=(16,)),
        "conv2": drawn(3, kernel=(5, 5, 16, 32)),
        "norm2": drawn(4, gamma=(32,), beta=(32,), moving_mean=(32,), moving_variance=(32,)),
        "dense": drawn(5, kernel=(49 * 32, 128), bias=(128,)),
        "output": drawn(6, kernel=(128, 10), bias=(10,)),
    }
    path = write(tmp_path / "w.h5", None, weights, whole=False)

    body = mounted(HandedOver(path), context, make_case).body

    conv, dense = body.get_submodule("conv2"), body.get_submodule("dense")
    assert torch.equal(conv.weight[7, 3], torch.from_numpy(weights["conv2"]["kernel"][:, :, 3, 7]))  # type: ignore[index]
    # Channel 5 at row 2, column 6.
    there, here = (2 * 7 + 6) * 32 + 5, 5 * 49 + 2 * 7 + 6
    assert torch.equal(dense.weight[:, here], torch.from_numpy(weights["dense"]["kernel"][there]))  # type: ignore[index]


def _changed(change: Callable[[State], object]) -> Callable[[State, Path], None]:
    def make(state: State, path: Path) -> None:
        change(state)
        torch.save(state, path)

    return make


def _truncated(state: State, path: Path) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:3000])


def _set(name: str, value: Tensor) -> Callable[[State, Path], None]:
    return _changed(lambda state: state.update({name: value}))


BAD: dict[str, tuple[Callable[[State, Path], object], str]] = {
    "missing": (_changed(lambda state: state.pop("conv2.weight")), "has no conv2.weight, which the network needs"),
    "superfluous": (_set("conv9.bias", torch.ones(3)), "conv9.bias belongs to no layer of the network"),
    "shape": (_set("dense.bias", torch.ones(7)), r"dense.bias has the shape \[7\]; due: \[128\]"),
    "NaN": (_set("dense.bias", torch.full((128,), torch.nan)), "dense.bias holds NaN or infinite values"),
    "infinite": (_set("dense.bias", torch.full((128,), torch.inf)), "dense.bias holds NaN or infinite values"),
    "complex": (_set("dense.bias", torch.ones(128, dtype=torch.complex64)), "dense.bias has the type torch.complex64"),
    "no tensor": (_changed(lambda state: state.update(note="x")), "note is no tensor"),  # type: ignore[call-overload]
    "strange names": (lambda state, path: torch.save({f"x{name}": value for name, value in state.items()}, path), "none of its tensors belongs to the network, as xconv1.weight; due: conv1.weight"),
    "a list": (lambda state, path: torch.save([torch.ones(3)], path), "holds no state_dict"),
    "a whole module": (lambda state, path: torch.save(SimpleCnn().build(GREY, 10), path), r"it holds Python objects other than tensors \(a pickle\), which is never loaded"),
    "a plain pickle": (lambda state, path: path.write_bytes(pickle.dumps({"epochs": 3})), r"it holds Python objects other than tensors \(a pickle\), which is never loaded"),
    "text": (lambda state, path: path.write_text("no weights"), "it is no file that torch.save wrote"),
    "a negative variance": (lambda state, path: torch.save(state | {"norm1.running_var": -torch.ones(16)}, path), "norm1.running_var holds negative values, which no variance has"),
    "a pickle in disguise": (lambda state, path: path.write_bytes(pickle.dumps({"a": _Evil()})), "can't be read as weights"),
    "a truncated file": (_truncated, "can't be read as weights"),
    "an empty file": (lambda state, path: path.write_bytes(b""), "can't be read as weights"),
}  # fmt: skip


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize("name", BAD)
def test_bad_weights_are_refused_in_one_sentence(
    name: str, network: Network, tmp_path: Path, context: Context, make_case: CaseMaker
) -> None:
    make, message = BAD[name]
    make(body_of(network), path := tmp_path / "bad.pt")
    with pytest.raises(GauntletError, match=message) as caught:
        mounted(HandedOver(path), context, make_case)
    assert "bad.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_safetensors_and_foreign_keras_layers_are_named(
    tmp_path: Path, context: Context, make_case: CaseMaker
) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(DataError, match=r"w.safetensors can't be read as weights"):
        mounted(HandedOver(tmp_path / "w.safetensors"), context, make_case)
    path = write(tmp_path / "w.h5", None, {"conv_1": drawn(1, kernel=(3, 3, 1, 4))}, whole=False)
    with pytest.raises(DataError, match=r"w.h5 has no kernel for the layer conv1"):
        mounted(HandedOver(path), context, make_case)


def test_a_file_with_its_own_normalisation_takes_no_other(
    network: Network, tmp_path: Path, context: Context, make_case: CaseMaker
) -> None:
    save_file(dict(network.state_dict()), path := tmp_path / "w.safetensors")
    with pytest.raises(SettingError, match=r"w.safetensors brings its own normalisation"):
        mounted(HandedOver(path, input_range="0..255"), context, make_case)


def test_a_picture_is_pasted_with_its_transparency(tmp_path: Path) -> None:
    glasses = picture(tmp_path / "glasses.png", 3, 2, (200, 100, 0, 51))
    trigger = PastedTrigger(glasses, target=3, x=4, y=5)
    for channels in (1, 3):
        images = torch.full((2, channels, 9, 8), 0.5)
        before = images.clone()
        pasted = trigger.paste(images)
        inside = pasted[:, :, 5:7, 4:7]

        assert torch.equal(images, before)
        colours = [200, 100, 0] if channels == 3 else [0.299 * 200 + 0.587 * 100]
        due = torch.tensor(colours).view(-1, 1, 1) / 255 * 0.2 + 0.5 * 0.8
        torch.testing.assert_close(inside, due.expand_as(inside))
        pasted[:, :, 5:7, 4:7] = 0.5
        assert torch.equal(pasted, images)


def test_settings_are_hashable_and_go_through_toml_values(tmp_path: Path) -> None:
    glasses = picture(tmp_path / "glasses.png", 3, 2, (0, 0, 0))
    attack = HandedOver(
        Path("w.h5"),
        triggers=(PastedTrigger(glasses, 3, 4, 5, "a"), PastedTrigger(glasses, 8)),
        poisoned=(Path("p.h5"),),
    )
    again = Registry.discover().build(Kind.ATTACK, "handed_over", values(attack))

    assert again == attack
    assert hash(again) == hash(attack)
    assert paths_in(attack) == [Path("w.h5"), glasses, glasses, Path("p.h5")]
    assert "target:3" in tag("handed_over", changed(attack))
    assert label(attack).startswith("handed_over[")
    with pytest.raises(SettingError, match=r"triggers\[0\] = -1: input should be greater than or equal to 0"):
        build(HandedOver, {"triggers": [{"picture": "a.png", "target": -1}]}, "handed_over")


def test_poisoned_files_give_a_backdoor_for_each_wanted_class(
    tmp_path: Path, context: Context, make_case: CaseMaker
) -> None:
    one = poison(tmp_path / "one.h5", [7, 7, 7])
    many = poison(tmp_path / "many.h5", [5, 1, 8, 1])
    attack = HandedOver(poisoned=(one, many))
    attack.check(facts())
    tools = tools_for(dataclasses.replace(make_case("none"), attack=attack), 0, context)
    sets = TestSets(tools.data, attack, torch.device("cpu"), tools.memory)

    found = {backdoor.name: backdoor for backdoor in attack.backdoors}

    assert list(found) == ["one", "many 1", "many 5", "many 8"]
    assert sets.images(found["many 1"])[:, 0, 0, 0].tolist() == [1, 3]
    assert sets.labels(found["many 1"]).tolist() == [-1, -1]
    assert found["many 8"].labels.apply(torch.tensor([-1]), 10).tolist() == [8]


SETTINGS: dict[str, tuple[Callable[[Path], HandedOver], str]] = {
    "a trigger outside": (lambda path: HandedOver(triggers=(PastedTrigger(picture(path / "a.png", 5, 5, (0, 0, 0)), 1, 24, 3),)), "trigger a: the picture a.png of 5x5 pixels at x = 24, y = 3 leaves the 28x28 images of toy; legal: x from 0 to 23, y from 0 to 23"),
    "a trigger too large": (lambda path: HandedOver(triggers=(PastedTrigger(picture(path / "a.png", 29, 5, (0, 0, 0)), 1),)), "a.png of 29x5 pixels is larger than the 28x28 images"),
    "a target outside": (lambda path: HandedOver(triggers=(PastedTrigger(picture(path / "a.png", 5, 5, (0, 0, 0)), 10),)), "trigger a: target = 10: toy has 10 classes; legal: 0 to 9"),
    "no picture": (lambda path: HandedOver(triggers=(PastedTrigger(path / "no.png", 1),)), "no.png: no such file"),
    "no image at all": (lambda path: HandedOver(triggers=(PastedTrigger(poison(path / "a.png", [1]), 1),)), "a.png is no PNG or JPEG picture"),
    "invisible": (lambda path: HandedOver(triggers=(PastedTrigger(picture(path / "a.png", 2, 2, (9, 9, 9, 0)), 1),)), "a.png: every pixel of the picture is transparent"),
    "two of a name": (lambda path: HandedOver(triggers=(PastedTrigger(picture(path / "a.png", 2, 2, (0, 0, 0)), 1),) * 2), "two triggers or poisoned files are called a; give the triggers a `name`"),
    "no weights": (lambda path: HandedOver(path / "no.h5"), "no.h5: no such file"),
    "a suffix": (lambda path: HandedOver(path / "w.pkl"), r"w.pkl; legal: files named \*.h5, \*.hdf5, \*.safetensors, \*.pt, \*.pth"),
    "three means": (lambda path: HandedOver(mean=(0.5,) * 3), "mean has 3 values; legal: none, one, or 1 for the channels of toy"),
    "a contradiction": (lambda path: HandedOver(std=(0.5,), input_range="0..255"), "input_range = 0..255 contradicts mean and std"),
    "another size": (lambda path: HandedOver(poisoned=(poison(path / "p.h5", [1], (1, 9, 9)),)), r"p.h5: images of \[1, 9, 9\] \[C, H, W\], and those of toy are \[1, 28, 28\]; give the `size`, or `--resize` to gauntlet audit, to resize them"),
    "a label outside": (lambda path: HandedOver(poisoned=(poison(path / "p.h5", [10]),)), "p.h5: the label 10 stands there, and toy has 10 classes; legal: 0 to 9"),
    "true labels": (lambda path: HandedOver(poisoned=(poison(path / "p.h5", range(60)),)), "p.h5: the label 59 stands there"),
    "no poisoned file": (lambda path: HandedOver(poisoned=(path / "no.h5",)), "no.h5: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_impossible_settings_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    make, message = SETTINGS[name]
    with pytest.raises(GauntletError, match=message) as caught:
        make(tmp_path).check(facts())
    assert "\n" not in str(caught.value)


def _faces(path: Path, registry: Registry, case: Case) -> Case:
    """A case on 20 images of the contest's size, which nobody trains on."""
    with h5py.File(path, "w") as file:
        file["data"] = np.random.default_rng(0).integers(0, 256, (20, 3, 55, 47)).astype("f4")
        file["label"] = np.arange(20)
    task = registry.task(f"h5:{path}", {"clean_only": True, "classes": 1283})
    return dataclasses.replace(case, task_name=f"h5:{path}", task=task, architecture=DeepId(), reserve=5)


@pytest.mark.parametrize("name", ["sunglasses", "multi_trigger_multi_target"])
def test_the_real_badnets_are_mounted_stored_and_loaded(
    name: str, tmp_path: Path, registry: Registry, context: Context, make_case: CaseMaker
) -> None:
    weights = SHARED / "csaw" / f"{name}_bd_weights.h5"
    if not weights.exists():
        pytest.skip("../shared/data/csaw is absent")
    attack = HandedOver(weights)
    case = dataclasses.replace(_faces(tmp_path / "faces.h5", registry, make_case("none")), attack=attack)
    tools = tools_for(case, 0, context)
    attack.check(tools.data.facts)
    due = DeepId().build((3, 55, 47), 1283).eval()
    load_keras(due, keras_arrays(weights), (3, 55, 47), weights.name)
    images = torch.rand(3, 3, 55, 47)

    first = mount(attack, tools)
    again = mount(attack, tools_for(dataclasses.replace(case, seeds=(0,)), 0, dataclasses.replace(context)))

    for made in (first, again):
        with torch.no_grad():
            torch.testing.assert_close(made.value.network(images), due(images), rtol=1e-4, atol=1e-4)
        assert len(made.value.training) == len(made.value.poisoned) == 0


def test_a_keras_model_carries_its_own_weights(
    tmp_path: Path, registry: Registry, context: Context, make_case: CaseMaker
) -> None:
    dense = drawn(2, kernel=(28 * 28, 10), bias=(10,))
    config = functional(
        source(28, 28, 1), layer("Flatten", "f", "input"), layer("Dense", "d", "f", units=10, activation="softmax")
    )
    path = write(tmp_path / "m.h5", config, {"d": dense})
    model = registry.build(Kind.MODEL, "keras_model", {"path": str(path)})
    case = dataclasses.replace(make_case("handed_over"), architecture=model)

    made = mount(case.attack, tools_for(case, 0, context)).value.network

    due = shown().flatten(1) @ torch.from_numpy(dense["kernel"]) + torch.from_numpy(dense["bias"])
    torch.testing.assert_close(made(shown()), due)
