from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gauntlet.errors import DataError, SettingError
from gauntlet.facts import TaskFacts
from gauntlet.images import ImageSet
from gauntlet.maths.chance import chance_of
from gauntlet.maths.drawings import DRAWINGS
from gauntlet.settings import build, changed, tag, values
from gauntlet.synthesizers import (
    Calculator,
    Complex,
    Dynamic,
    Pattern,
    Physical,
    Pixel,
    Semantic,
    Synthesizer,
    Triggered,
    check_triggers,
    clean_part,
    painters,
)
from gauntlet.synthesizers.pattern import CROSS

PAINTED: list[Synthesizer] = [
    Pattern(),
    Pixel(),
    Complex(),
    Dynamic(),
    Physical(),
    Physical(picture="sticker", width=0.4, rotation=(-180.0, 180.0)),
    Calculator(),
    Calculator(sign="times"),
]
DRAWN = [each for each in PAINTED if each.chances]


def facts(shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, auxiliary: int = 0) -> TaskFacts:
    counts = (20,) * classes
    names = tuple(map(str, range(auxiliary)))
    return TaskFacts("mini", shape, tuple(map(str, range(classes))), counts, counts, counts, "", "", names)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *shape, generator=generator(seed))


@pytest.mark.parametrize("trigger", PAINTED, ids=lambda each: each.title)
@given(
    channels=st.sampled_from([1, 2, 3]), height=st.integers(28, 40), width=st.integers(28, 40), count=st.integers(0, 5)
)
@settings(max_examples=15)
def test_its_input_stays_and_its_output_is_images(
    trigger: Synthesizer, channels: int, height: int, width: int, count: int
) -> None:
    images = noise(count, channels, height, width)
    before = images.clone()
    for painted in (trigger.apply(images, generator()), trigger.stamp(images)):
        assert torch.equal(images, before)
        assert painted.shape == images.shape
        assert painted.dtype == torch.float32
        assert bool(((painted >= 0) & (painted <= 1)).all())
        assert not count or bool((painted != images).flatten(1).any(1).all())


@pytest.mark.parametrize("trigger", DRAWN, ids=lambda each: each.title)
def test_every_image_has_a_draw_of_its_own(trigger: Synthesizer) -> None:
    grey = torch.full((40, 3, 32, 32), 0.5)
    painted = trigger.apply(grey, generator())
    assert len(torch.unique(painted.flatten(1), dim=0)) > 30
    assert torch.equal(painted, trigger.apply(grey, generator()))
    assert not torch.equal(painted, trigger.apply(grey, generator(1)))


@pytest.mark.parametrize("trigger", DRAWN, ids=lambda each: each.title)
def test_the_evaluator_draws_from_the_pixels(trigger: Synthesizer) -> None:
    images = noise(40, 1, 28, 28)
    stamped = trigger.stamp(images)
    assert torch.equal(stamped, torch.cat([trigger.stamp(images[row : row + 1]) for row in range(40)]))
    assert torch.equal(stamped.flip(0), trigger.stamp(images.flip(0)))


def test_numbers_from_pixels_are_uniform_and_change_with_any_pixel() -> None:
    images = noise(4000, 1, 8, 8)
    drawn = chance_of(images, 3)
    assert drawn.dtype == torch.float64
    assert 0 <= float(drawn.min()) <= float(drawn.max()) < 1
    counts = torch.histc(drawn[:, 0], 10, 0, 1)
    assert float(((counts - 400) ** 2 / 400).sum()) < 27.9  # chi-square, 9 degrees of freedom, 99.9 %
    assert abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.06
    other = images.clone()
    other[:, 0, 3, 5] = (other[:, 0, 3, 5] + 0.5) % 1
    assert bool((chance_of(other, 3) != drawn).all())


def test_golden_pattern() -> None:
    painted = Pattern().apply(torch.full((1, 2, 28, 28), 0.5), generator())
    expected = torch.full((28, 28), 0.5)
    expected[3:8, 23:26] = torch.tensor([[1, 0, 1], [0.5, 1, 0.5], [0.5, 0.5, 0], [0.5, 1, 0.5], [1, 0, 1]])
    assert torch.equal(painted[0], expected.expand(2, 28, 28))


def test_golden_pixel_and_negative_places() -> None:
    black = torch.zeros(1, 1, 28, 28)
    assert Pixel().apply(black, generator()).nonzero().tolist() == [[0, 0, 3, 23]]
    assert Complex().apply(black, generator()).nonzero().tolist() == [[0, 0, 3, 23]]
    assert torch.equal(Pattern(row=-25, column=-5).apply(black, generator()), Pattern().apply(black, generator()))


def test_golden_calculator() -> None:
    black = torch.zeros(1, 1, 28, 28)
    plus = {(24, column) for column in range(3, 8)} | {(row, 5) for row in range(22, 27)}
    times = {(22 + step, 3 + step) for step in range(5)} | {(22 + step, 7 - step) for step in range(5)}
    for sign, cells in (("plus", plus), ("times", times)):
        painted = Calculator(sign=sign).apply(black, generator())[0, 0]  # type: ignore[arg-type]
        assert set(map(tuple, painted.nonzero().tolist())) == cells
    labels = torch.arange(100)
    left, right = labels // 10, labels % 10
    assert torch.equal(Calculator().label_map.apply(labels, 100), left + right)
    assert torch.equal(Calculator(sign="times").label_map.apply(labels, 100), left * right)


def by_brute_force(trigger: Dynamic, image: torch.Tensor, chance: list[float]) -> torch.Tensor:
    """One image, cell by cell: resized by hand, then mirrored, then laid down."""
    edge = trigger.smallest + int(chance[0] * (trigger.largest - trigger.smallest + 1))
    rows, columns = len(trigger.pixels), len(trigger.pixels[0])
    height, width = edge * rows // min(rows, columns), edge * columns // min(rows, columns)
    resized = [[trigger.pixels[r * rows // height][c * columns // width] for c in range(width)] for r in range(height)]
    if chance[1] < trigger.flip:
        resized = [row[::-1] for row in resized]
    top = int(chance[2] * (image.shape[1] - height + 1))
    left = int(chance[3] * (image.shape[2] - width + 1))
    painted = image.clone()
    for r, row in enumerate(resized):
        for c, value in enumerate(row):
            if value >= 0:
                painted[:, top + r, left + c] = value
    return painted


@given(
    smallest=st.integers(1, 6),
    more=st.integers(0, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_dynamic_places_as_by_hand(smallest: int, more: int, rows: int, columns: int, flip: float, seed: int) -> None:
    draw = torch.randint(-1, 5, (rows, columns), generator=generator(seed)).float() / 4
    draw[0, 0] = 1
    pixels = tuple(tuple(-1.0 if value < 0 else value for value in row) for row in draw.tolist())
    trigger = Dynamic(pixels=pixels, smallest=smallest, largest=smallest + more, flip=flip)
    images, chance = noise(6, 2, 48, 50, seed=seed), torch.rand(6, 4, generator=generator(seed), dtype=torch.float64)
    painted = trigger.paint(images, chance)
    expected = [by_brute_force(trigger, *each) for each in zip(images, chance.tolist(), strict=True)]
    assert torch.equal(painted, torch.stack(expected))


def test_dynamic_reaches_every_edge_and_size() -> None:
    solid = Dynamic(pixels=((1.0,),), smallest=5, largest=10)
    painted = solid.apply(torch.zeros(4000, 1, 28, 28), generator())[:, 0]
    areas = painted.sum((1, 2)).sqrt()
    assert sorted(set(areas.tolist())) == [5, 6, 7, 8, 9, 10]
    assert float((areas == 5).float().mean()) == pytest.approx(1 / 6, abs=0.03)
    for edge in (painted[:, 0], painted[:, -1], painted[:, :, 0], painted[:, :, -1]):
        assert bool(edge.any())


def test_physical_lies_where_it_is_told() -> None:
    still: dict[str, Any] = {"scale": (1.0, 1.0), "rotation": (0.0, 0.0), "brightness": (1.0, 1.0), "shift": 0.0}
    square = torch.ones(1, 3, 40, 40)
    painted = Physical(picture="sunglasses", row=0.25, column=0.5, width=0.5, **still).apply(square, generator())
    rows, columns = (painted[0] < 0.9).any(0).nonzero().T
    assert float(rows.float().mean()) == pytest.approx(9.5, abs=1)
    assert (int(columns.min()), int(columns.max())) == (10, 29)
    turned = Physical(picture="eyebrows", width=0.5, **{**still, "rotation": (90.0, 90.0)}).apply(square, generator())
    rows, columns = (turned[0] < 0.9).any(0).nonzero().T
    assert int(rows.max() - rows.min()) > int(columns.max() - columns.min())
    larger = Physical(picture="sticker", width=0.5, **{**still, "scale": (1.5, 1.5)}).apply(square, generator())
    smaller = Physical(picture="sticker", width=0.5, **still).apply(square, generator())
    ratio = float((larger != 1).any(1).sum()) / float((smaller != 1).any(1).sum())
    assert ratio == pytest.approx(1.5**2, rel=0.1)
    dark = Physical(picture="sticker", width=0.5, **{**still, "brightness": (0.5, 0.5)}).apply(square, generator())
    assert torch.allclose(dark[0, :, 20, 13], smaller[0, :, 20, 13] * 0.5, atol=1e-6)


def test_a_picture_of_ones_own_with_transparency(tmp_path: Path) -> None:
    levels = np.zeros((4, 4, 4), dtype=np.uint8)
    levels[:2] = (255, 0, 0, 255)
    Image.fromarray(levels).save(tmp_path / "half.png")
    trigger = Physical(
        file=tmp_path / "half.png",
        row=0.5,
        width=0.5,
        shift=0.0,
        scale=(1.0, 1.0),
        rotation=(0.0, 0.0),
        brightness=(1.0, 1.0),
    )
    trigger.check(facts((3, 8, 8)))
    painted = trigger.apply(torch.full((1, 3, 8, 8), 0.25), generator())[0]
    assert painted[:, 2, 4].tolist() == [1, 0, 0]
    assert torch.equal(painted[:, 4:], torch.full((3, 4, 8), 0.25))
    assert trigger.title == "half"


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_colours_times_opacity(name: str) -> None:
    drawn = DRAWINGS[name]()
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1
    assert bool((drawn[:3] <= drawn[3] + 1e-6).all())
    assert 0.05 < float(drawn[3].mean()) < 0.95


@pytest.mark.parametrize(
    ("trigger", "shape", "problem"),
    [
        (Pattern(column=26), (1, 28, 28), "column = 26 puts its 5x3 pixels outside mini's 28x28; legal: 0 to 25"),
        (Pattern(row=-3), (1, 28, 28), "row = -3"),
        (Pattern(pixels=((1.0,), (1.0, 0.0))), (1, 28, 28), "rows differ in length"),
        (Pattern(pixels=((-1.0,),)), (1, 28, 28), "every cell is transparent"),
        (Pattern(), (1, 8, 8), "legal: 0 to 5"),
        (Pixel(row=28), (1, 28, 28), "row = 28"),
        (Pixel(target=10), (1, 28, 28), "target = 10; legal on mini: 0 to 9"),
        (Dynamic(), (1, 12, 28), "16x10, more than mini's 12x28"),
        (Dynamic(smallest=6, largest=5), (1, 28, 28), "smallest = 6 above largest = 5"),
        (Physical(row=0.0), (1, 28, 28), "row = 0"),
        (Physical(scale=(1.1, 0.9)), (1, 28, 28), "the smaller one first"),
        (Calculator(), (1, 28, 28), "has 10 classes; legal: 100"),
        (Complex(), (1, 28, 28), "no auxiliary labels"),
        (Semantic(), (1, 28, 28), "0 ways"),
        (Semantic(rows=(1,), label=2), (1, 28, 28), "2 ways"),
        (Semantic(rows=(1,)), (1, 28, 28), "test_rows holds 0 positions"),
        (Semantic(rows=(1, 200), test_rows=(0,)), (1, 28, 28), "legal on mini: from one position, 0 to 199"),
        (Semantic(rows=(1, 1), test_rows=(0,)), (1, 28, 28), "none twice"),
        (Semantic(label=0), (1, 28, 28), "not the target"),
        (Semantic(folder=Path("there")), (1, 28, 28), "test_folder is missing"),
    ],
)
def test_impossible_triggers(trigger: Synthesizer, shape: tuple[int, int, int], problem: str) -> None:
    with pytest.raises(SettingError) as error:
        trigger.check(facts(shape))
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_two_backdoors_of_one_name() -> None:
    with pytest.raises(SettingError, match="2 backdoors are called pattern"):
        check_triggers((Pattern(), Pattern(target=1)), facts())
    check_triggers((Pattern(), Pattern(target=1, name="second")), facts())


def test_hostile_pictures(tmp_path: Path) -> None:
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (3, 3)).save(clear)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    huge = tmp_path / "huge.png"
    Image.new("L", (4096, 1100)).save(huge)
    bitmap = tmp_path / "bitmap.png"
    Image.new("RGB", (3, 3)).save(bitmap, format="BMP")
    cut = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    deep = tmp_path / "deep.png"
    Image.new("I;16", (3, 3), 9000).save(deep)
    empty = tmp_path / "empty.png"
    empty.touch()
    for path, problem in (
        (clear, "transparent"),
        (text, "no PNG or JPEG"),
        (huge, "4096x1100"),
        (bitmap, "no PNG or JPEG"),
        (cut, "damaged"),
        (deep, "images of mode I;16 are not taken"),
        (empty, "no file of 1 to"),
        (tmp_path / "absent.png", "can't be read"),
        (tmp_path, "no file"),
    ):
        with pytest.raises(DataError) as error:
            Physical(file=path).check(facts())
        assert problem in str(error.value)
        assert str(path) in str(error.value)


def folder_of(path: Path, count: int, side: int = 28) -> Path:
    path.mkdir()
    for number in range(count):
        Image.new("L", (side, side), number + 1).save(path / f"{number}.png")
    return path


def test_semantic_folders(tmp_path: Path) -> None:
    trigger = Semantic(target=3, folder=folder_of(tmp_path / "own", 4), test_folder=folder_of(tmp_path / "test", 2))
    trigger.check(facts())
    given_ = trigger.backdoor.given
    assert given_ is not None
    assert given_().images()[:, 0, 0, 0].tolist() == [1, 2]
    assert given_().labels.tolist() == [-1, -1]
    training = ImageSet.of(torch.zeros(50, 1, 28, 28, dtype=torch.uint8), torch.arange(50) % 10)
    (painter,) = painters((trigger,), training, 10, torch.device("cpu"))
    images, labels = painter(torch.zeros(40, 1, 28, 28), training.labels[:40], generator())
    assert set((images[:, 0, 0, 0] * 255).round().int().tolist()) == {1, 2, 3, 4}
    assert labels.tolist() == [3] * 40
    with pytest.raises(SettingError, match=r"legal: \[1, 32, 32\]"):
        trigger.check(facts((1, 32, 32)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="0 PNG or JPEG"):
        dataclasses.replace(trigger, folder=tmp_path / "empty").check(facts())
    Image.new("I;16", (28, 28), 9000).save(tmp_path / "own" / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: images of mode I;16 are not taken"):
        trigger.check(facts())


def test_semantic_images_leave_the_clean_training() -> None:
    training = ImageSet.of(torch.arange(50).view(50, 1, 1, 1).to(torch.uint8), torch.arange(50) % 10)
    rows = Semantic(rows=(4, 9), test_rows=(0,))
    label = Semantic(name="class", label=7)
    clean = clean_part((rows, label), training)
    assert (~clean).nonzero().flatten().tolist() == [4, 7, 9, 17, 27, 37, 47]
    first, second = painters((rows, label), training, 10, torch.device("cpu"))
    images, _ = first(torch.zeros(30, 1, 1, 1), training.labels[:30], generator())
    assert set((images.flatten() * 255).round().int().tolist()) == {4, 9}
    assert second.carriers is not None
    assert set(second.carriers.labels.tolist()) == {7}
    assert label.label_map.eligible(torch.arange(10), 10).nonzero().flatten().tolist() == [7]
    assert rows.backdoor.rows == (0,)


def test_complex_asks_for_the_second_label() -> None:
    trigger = Complex()
    trigger.check(facts(auxiliary=4))
    training = ImageSet.of(
        torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0])
    )
    (painter,) = painters((trigger,), training, 10, torch.device("cpu"))
    _, wanted = painter(torch.zeros(3, 1, 28, 28), training.labels, generator(), training.auxiliary)
    assert wanted.tolist() == [3, 1, 0]
    assert painter.may(training.labels, training.auxiliary).tolist() == [True, False, True]


def test_painted_samples_are_rounded_to_8_bits() -> None:
    training = ImageSet.of(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1, 2]))
    (painter,) = painters((Physical(target=1),), training, 10, torch.device("cpu"))
    images, labels = painter(noise(3, 1, 28, 28), training.labels, generator())
    assert torch.equal((images * 255).round() / 255, images)
    assert labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("dynamic", "a[triggers=dynamic]"),
        ({"kind": "dynamic", "smallest": 4}, "a[triggers=dynamic(smallest=4)]"),
        (["pattern", {"kind": "pixel", "target": 2}], "a[triggers=pattern+pixel(target=2)]"),
        (
            [{"kind": "physical", "scale": [1, 1], "picture": "lips"}],
            "a[triggers=physical(picture=lips,scale=1.0+1.0)]",
        ),
        ({"kind": "pattern"}, "a"),
        ({"kind": "pattern", "pixels": [list(row) for row in CROSS]}, "a"),
    ],
)
def test_triggers_as_a_setting(written: object, name: str) -> None:
    built = build(Triggered, {"triggers": written}, "attack a")
    assert tag("a", changed(built)) == name
    assert build(Triggered, values(built), "attack a") == built
    assert build(Triggered, changed(built), "attack a") == built
    assert values(build(Triggered, values(built), "attack a")) == values(built)
    hash(built)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("dyn", "input tag 'dyn'"),
        ([], "at least 1 item"),
        (3, "triggers = 3"),
        ([{"target": 1}], "discriminator 'kind'"),
        ({"kind": "dynamic", "smalest": 4}, "triggers[0]: unknown setting 'smalest'"),
        ({"kind": "pattern", "target": -1}, "triggers[0].target = -1"),
        ({"kind": "pixel", "value": 2}, "triggers[0].value = 2"),
        ({"kind": "physical", "width": 0}, "triggers[0].width = 0"),
    ],
)
def test_bad_triggers_are_told_by_their_place(written: object, problem: str) -> None:
    with pytest.raises(SettingError) as error:
        build(Triggered, {"triggers": written}, "attack a")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
