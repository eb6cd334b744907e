from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from defenses.autoencoder_detector import Autoencoder, AutoencoderDetector
from gauntlet.defense import Scorer
from gauntlet.images import ImageSet, to_float
from gauntlet.network import Network
from gauntlet.pipeline import Context, run
from gauntlet.screening import auroc, screen_of
from gauntlet.views import DefenderView, Draws
from tests.sample_cases import CaseMaker
from tests.sample_views import view_on


def stripes(count: int, shape: tuple[int, int, int] = (3, 27, 22)) -> Tensor:
    """uint8: dark waves of random direction and phase, which an autoencoder learns in seconds."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(count)
    angle, phase = (6.28 * torch.rand(count, 1, 1, generator=generator) for _ in range(2))
    rows, columns = torch.arange(height)[:, None] / 4, torch.arange(width)[None] / 4
    waves = (rows * angle.sin() + columns * angle.cos() + phase).sin()
    return (60 + 40 * waves)[:, None].expand(-1, channels, -1, -1).to(torch.uint8)


def with_square(images: Tensor) -> Tensor:
    images = images.clone()
    images[:, :, 3:8, 4:9] = 255
    return images


@pytest.fixture(scope="module")
def view() -> DefenderView:
    victim = Network(nn.Sequential(nn.Flatten(), nn.Linear(3 * 27 * 22, 4)), [0.0] * 3, [1.0] * 3, "1", None)
    return view_on(victim, ImageSet.of(stripes(200), torch.arange(200) % 4), classes=4)


@pytest.fixture(scope="module")
def scorer(view: DefenderView) -> Scorer:
    return AutoencoderDetector(steps=60).scorer(view)


def test_a_bright_square_stands_out_of_what_was_learnt(view: DefenderView) -> None:
    screen = screen_of(AutoencoderDetector(steps=60), view)
    clean = screen.scores(stripes(100))
    square = screen.scores(with_square(stripes(100)))

    assert auroc(clean, square) > 0.99
    assert (square > screen.limit).float().mean() > 0.95
    assert (clean > screen.limit).float().mean() < 0.2


def test_the_score_is_the_mean_and_deviation_of_the_squared_error(
    view: DefenderView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an autoencoder that draws every image grey."""
    monkeypatch.setattr(Autoencoder, "forward", lambda _self, images: torch.full_like(images, 0.5))
    monkeypatch.setattr(view.tools, "train", lambda *_purpose, network, **_settings: network)
    images = to_float(stripes(7))
    errors = (images - 0.5).square().flatten(1).double().numpy()

    found = AutoencoderDetector().scorer(view)(images)
    torch.testing.assert_close(found.double(), torch.tensor(errors.mean(1) + errors.std(1)), rtol=1e-5, atol=1e-6)


def test_it_judges_each_image_by_itself_and_repeats(view: DefenderView, scorer: Scorer) -> None:
    images = to_float(stripes(10))
    together = scorer(images)

    torch.testing.assert_close(torch.cat([scorer(image[None]) for image in images]), together)
    assert torch.equal(AutoencoderDetector(steps=60).scorer(view)(images), together)
    assert not torch.equal(AutoencoderDetector(steps=60).scorer(replace(view, draws=Draws(6)))(images), together)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 55, 47), (2, 8, 16), (1, 28, 28)])
def test_images_of_any_size(shape: tuple[int, int, int]) -> None:
    found = Autoencoder(shape[0], 4)(torch.rand(2, *shape))

    assert found.shape == (2, *shape)
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_encoder_halves_three_times() -> None:
    network = Autoencoder(3, 32)

    assert network.encoder(torch.rand(1, 3, 56, 48)).shape == (1, 32, 7, 6)
    assert [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)] == [32] * 6 + [3]


def test_through_the_whole_pipeline(context: Context, make_case: CaseMaker) -> None:
    (score,) = run(make_case("badnets", "autoencoder_detector", defense_settings={"steps": 40}), context).scores

    assert score.detector is not None
    assert score.detector.clean.n == 449
