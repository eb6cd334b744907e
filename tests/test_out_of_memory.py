"""A batch that the device's memory doesn't hold: the parts that it is split into, and what they add up to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gauntlet.images import ImageSet, to_float
from gauntlet.maths.inversion import Inverted, Search, invert
from gauntlet.network import Network
from gauntlet.out_of_memory import Accumulation, outputs
from gauntlet.progress import Silent
from gauntlet.recipe import Recipe
from gauntlet.training import fit, logits

CPU = torch.device("cpu")


class Small(nn.Module):
    """A network on a device that holds `room` samples, in double precision so that sums can be compared."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.sizes: list[int] = []
        torch.manual_seed(0)
        self.dense = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError(f"{len(images)} samples")
        self.sizes.append(len(images))
        output: Tensor = self.dense(images.flatten(1))
        return output


def network(room: int) -> tuple[Network, Small]:
    body = Small(room)
    return Network(body, [0.5], [0.5], "dense", None), body


def images(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return ImageSet.of(drawn, torch.arange(count) % 3)


class Heard(Silent):
    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)


def trained(room: int, heard: Heard) -> tuple[Network, Small, float]:
    model, body = network(room)
    recipe = Recipe(epochs=2, batch_size=32, learning_rate=0.01, precision="fp32")
    log = fit(model, images(70), recipe, seed=0, purpose=("training",), device=CPU, progress=heard)
    return model, body, log[-1].loss


def test_a_split_training_is_the_whole_one() -> None:
    whole, body, loss = trained(100, Heard())
    assert body.sizes == [32, 32, 6] * 2
    heard = Heard()
    split, small, other = trained(10, heard)
    assert small.sizes == ([8] * 8 + [2, 2, 2]) * 2 or small.sizes == ([8] * 8 + [2, 1, 2, 1]) * 2
    assert heard.steps == [
        "training: out of memory: batches of 32 now in 2 parts",
        "training: out of memory: batches of 32 now in 4 parts",
    ]
    assert other == pytest.approx(loss, rel=1e-4)
    for name, value in split.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_training_that_fits_says_nothing() -> None:
    heard = Heard()
    trained(32, heard)
    assert heard.steps == []


def test_what_never_fits_is_raised() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trained(1, Heard())
    with pytest.raises(torch.OutOfMemoryError):
        logits(network(0)[0], images(5).images(), Recipe(precision="fp32"), CPU)


@given(count=st.integers(2, 70), room=st.integers(3, 70))
def test_parts_hold_every_sample_once_and_two_at_least(count: int, room: int) -> None:
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    values = torch.arange(count, dtype=torch.float64)
    seen: list[list[int]] = []

    def clear() -> None:
        weight.grad = None
        seen.clear()

    def loss_of(part: slice) -> Tensor:
        if part.stop - part.start > room:
            raise torch.OutOfMemoryError
        seen.append(list(range(count))[part])
        return (weight * values[part]).mean() + values[part].mean()

    accumulation = Accumulation(lambda text: None)
    for _ in range(2):
        loss = accumulation.backward(loss_of, count, clear)
        assert [position for part in seen for position in part] == list(range(count))
        assert min(len(part) for part in seen) >= 2
        assert weight.grad is not None
        assert weight.grad.item() == pytest.approx(values.mean().item())
        assert loss.item() == pytest.approx(values.mean().item())


@given(count=st.integers(1, 60), size=st.integers(1, 64), room=st.integers(1, 64))
def test_outputs_come_in_order_and_once(count: int, size: int, room: int) -> None:
    def forward(part: slice) -> Tensor:
        if part.stop - part.start > room:
            raise torch.OutOfMemoryError
        return torch.arange(count)[part]

    assert torch.equal(outputs(count, size, forward), torch.arange(count))


def test_predictions_in_halved_parts_are_the_same() -> None:
    model, body = network(20)
    found = logits(model, images(90).images(), Recipe(precision="fp32"), CPU)
    assert body.sizes == [16] * 5 + [10]
    with torch.no_grad():
        torch.testing.assert_close(found, network(90)[0](to_float(images(90).images())))


def test_an_inversion_that_does_not_fit_takes_fewer_classes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    search = Search(steps=20, batch=5)
    room = 1_000
    seen: list[int] = []

    def crowded(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(len(inputs[0]))
        if len(inputs[0]) > room:
            raise torch.OutOfMemoryError("as if")

    network.register_forward_pre_hook(crowded)

    def inverted() -> Inverted:
        return invert(network, images, torch.arange(6), search, generator=torch.Generator().manual_seed(1))

    whole, sizes = inverted(), set(seen)
    room = 10
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    seen.clear()
    split = inverted()
    assert sizes == {30}
    assert set(seen) == {30, 15, 5}
    torch.testing.assert_close(split.masks, whole.masks)
    torch.testing.assert_close(split.norms, whole.norms)
    room = 4
    with pytest.raises(torch.OutOfMemoryError):
        inverted()
