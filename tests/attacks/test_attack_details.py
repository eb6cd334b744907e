from __future__ import annotations

import dataclasses

import pytest
import torch

from attacks.adversarial_embedding import AdversarialEmbedding
from attacks.badnets import BadNets
from attacks.clean_label import CleanLabel
from attacks.none import NoAttack
from attacks.single_pixel import SinglePixel
from gauntlet.errors import GauntletError, SettingError
from gauntlet.images import to_float, to_uint8
from gauntlet.labels import AllToAll
from gauntlet.mounting import attacker_view, mount
from gauntlet.pipeline import Context, run, tools_for
from gauntlet.plugin import Kind
from gauntlet.registry import Registry
from gauntlet.testsets import stamp
from tests.sample_cases import CaseMaker


@pytest.mark.parametrize("channels", [1, 3])
def test_art_pattern_equals_art_bit_for_bit(channels: int) -> None:
    perturbations = pytest.importorskip("art.attacks.poisoning.perturbations")
    images = torch.randint(0, 256, (20, channels, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    ours = stamp(BadNets(pattern="art").backdoors[0], images)
    theirs = perturbations.add_pattern_bd(to_float(images).numpy(), distance=2, pixel_value=1, channels_first=True)
    assert torch.equal(ours, to_uint8(torch.from_numpy(theirs)))


def test_single_pixel_equals_art_bit_for_bit() -> None:
    perturbations = pytest.importorskip("art.attacks.poisoning.perturbations")
    images = torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    theirs = perturbations.add_single_bd(to_float(images)[:, 0].numpy(), distance=2, pixel_value=1)
    ours = stamp(SinglePixel().backdoors[0], images)
    assert torch.equal(ours[:, 0], to_uint8(torch.from_numpy(theirs)))


def test_golden_patches() -> None:
    black = torch.zeros(1, 1, 8, 8)
    square = BadNets(patch=2, margin=1).trigger(black)[0, 0]
    assert square.nonzero().tolist() == [[5, 5], [5, 6], [6, 5], [6, 6]]
    corners = BadNets(patch=1, corner="all").trigger(black)[0, 0]
    assert corners.nonzero().tolist() == [[0, 0], [0, 7], [7, 0], [7, 7]]
    board = BadNets(patch=2, pattern="checkerboard", corner="top left").trigger(torch.full((1, 1, 8, 8), 0.5))[0, 0]
    assert board[:2, :2].tolist() == [[1, 0], [0, 1]]
    drawn = BadNets(pixels=((0.25, -1.0), (-1.0, 1.0))).trigger(torch.full((1, 3, 8, 8), 0.5))
    assert drawn[0, :, 6:, 6:].tolist() == [[[0.25, 0.5], [0.5, 1.0]]] * 3


def test_all_to_all_labels_and_count(context: Context, make_case: CaseMaker) -> None:
    case = make_case("badnets", attack_settings={"mode": "all_to_all"})
    tools = tools_for(case, 0, context)
    poison = BadNets(mode="all_to_all").poison(attacker_view(tools))
    before = tools.data.training.labels[poison.sources[poison.poisoned]]
    assert torch.equal(poison.training.labels[poison.poisoned], (before + 1) % 10)
    assert set(before.tolist()) == set(range(10))
    assert BadNets(mode="all_to_all").label_map == AllToAll()


def test_added_poison_keeps_the_originals_and_is_shuffled_in(context: Context, make_case: CaseMaker) -> None:
    tools = tools_for(make_case("badnets"), 0, context)
    poison = BadNets(deploy="add").poison(attacker_view(tools))
    clean = poison.training.subset(~poison.poisoned)
    assert clean.labels.bincount().tolist() == list(tools.data.facts.train_counts)
    half = len(poison.poisoned) // 2
    assert 0 < int(poison.poisoned[:half].sum()) < int(poison.poisoned.sum())


@pytest.mark.parametrize(("norm", "eps", "order"), [("inf", 0.3, torch.inf), ("2", 2.0, 2), ("1", 20.0, 1)])
def test_clean_label_noise_stays_in_its_ball(
    norm: str, eps: float, order: float, context: Context, make_case: CaseMaker
) -> None:
    settings = {"norm": norm, "eps": eps, "step": eps / 10, "iterations": 12, "proxy": "clean"}
    tools = tools_for(make_case("clean_label"), 0, context)
    attack = context.registry.build(Kind.ATTACK, "clean_label", settings)
    assert isinstance(attack, CleanLabel)
    view = attacker_view(tools)
    images = to_float(view.training.images(slice(0, 64)))
    labels = view.training.labels[:64]
    noisy = attack.noisy(view, images, labels)
    size = (noisy - images).flatten(1).norm(p=order, dim=1)
    assert size.max() <= eps * 1.001
    assert size.min() > 0
    proxy = attack.train_proxy(view)
    with torch.no_grad():
        fooled = (proxy(noisy).argmax(1) != labels).float().mean()
        wrong = (proxy(images).argmax(1) != labels).float().mean()
    assert fooled > wrong + 0.3


def test_clean_label_can_use_an_adversarially_trained_proxy_of_another_architecture(
    context: Context, make_case: CaseMaker
) -> None:
    recipe = dataclasses.replace(make_case("none").recipe, epochs=1)
    settings = {"proxy": "pgd", "proxy_model": "shallow_net"}
    tools = tools_for(make_case("clean_label", attack_settings=settings, recipe=recipe), 0, context)
    view = attacker_view(tools)
    proxy = CleanLabel(proxy="pgd", proxy_model="shallow_net").train_proxy(view)
    assert proxy.feature_layer != tools.architecture.feature_layer
    plain = CleanLabel(proxy="clean", proxy_model="shallow_net").train_proxy(view)
    assert any(
        not torch.equal(value, plain.state_dict()[name])
        for name, value in proxy.state_dict().items()
        if name.startswith("body")
    )


def test_a_proxy_that_the_attack_does_not_declare_is_refused(context: Context, make_case: CaseMaker) -> None:
    view = attacker_view(tools_for(make_case("badnets"), 0, context))
    with pytest.raises(GauntletError, match="declare"):
        view.tools.train(view.training, "training", architecture="le_net")


def test_adversarial_embedding_hides_the_features_that_arts_form_exposes(
    context: Context, make_case: CaseMaker
) -> None:
    distances = {}
    for form, strength in (("gradient_reversal", 0.1), ("art", 1.0)):
        case = make_case("adversarial_embedding", attack_settings={"form": form, "regularization": strength})
        tools = tools_for(case, 0, context)
        mounted = mount(case.attack, tools).value
        clean = tools.data.training
        zeros = to_float(clean.images(clean.labels == 0))
        others = to_float(stamp(case.attack.backdoors[0], clean.images(clean.labels != 0)))
        with torch.no_grad():
            at_target, _ = mounted.network.features_and_logits(zeros)
            triggered, _ = mounted.network.features_and_logits(others)
        distances[form] = float((at_target.mean(0) - triggered.mean(0)).norm() / at_target.std(0).norm())
    assert distances["gradient_reversal"] < distances["art"] / 2


def test_every_attack_reaches_its_target_on_the_digits(context: Context, make_case: CaseMaker) -> None:
    for name, least in (("badnets", 0.95), ("single_pixel", 0.8), ("clean_label", 0.7), ("adversarial_embedding", 0.8)):
        # One seed of clean_label is a lottery of noise (docs/attacks.md).
        seeds = (0, 1, 2) if name == "clean_label" else (0,)
        scores = run(dataclasses.replace(make_case(name), seeds=seeds), context).scores
        backdoors = [score.backdoors[0] for score in scores]
        assert sum(one.asr.hits for one in backdoors) / sum(one.asr.n for one in backdoors) >= least, name
        assert all(one.untriggered.hits / one.untriggered.n < 0.05 for one in backdoors), name
        assert all(score.clean.hits / score.clean.n >= 0.95 for score in scores), name


@pytest.mark.parametrize(
    ("name", "settings", "legal"),
    [
        ("badnets", {"patch": 29}, "at most 28"),
        ("badnets", {"margin": 26}, "at most 28"),
        ("badnets", {"target": 10}, "0 to 9"),
        ("none", {"target": 10}, "0 to 9"),
        ("badnets", {"poison_ratio": 0.95}, "at most 0.9"),
        ("badnets", {"poison_ratio": 0.95, "max_poisoned": 1085}, "max_poisoned at most 1,032"),
        ("single_pixel", {"row": 28}, "-28 to 27"),
        ("badnets", {"pixels": [[1.0], [1.0, 0.0]]}, "rows of one length"),
    ],
)
def test_impossible_on_this_task(
    name: str, settings: dict[str, object], legal: str, context: Context, make_case: CaseMaker
) -> None:
    attack = context.registry.build(Kind.ATTACK, name, settings)
    with pytest.raises(SettingError, match=legal):
        attack.check(context.data(make_case("none")).facts)


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("badnets", {"poison_ratio": 0.01, "max_poisoned": 1100}, 11),
        ("badnets", {"poison_ratio": 0.95, "max_poisoned": 1032}, 1032),
        ("badnets", {"poison_ratio": 0.95, "max_poisoned": 7}, 7),
        ("clean_label", {"poison_ratio": 0.1, "max_poisoned": 5000}, 11),
    ],
)
def test_a_cap_above_what_may_be_poisoned_is_no_mistake(
    name: str, settings: dict[str, object], count: int, context: Context, make_case: CaseMaker
) -> None:
    facts = context.data(make_case("none")).facts
    attack = context.registry.build(Kind.ATTACK, name, settings)
    attack.check(facts)
    assert attack.wanted(torch.tensor(facts.train_counts), facts.classes)[0] == count


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("badnets", {"poison_ratio": 1.5}, "poison_ratio"),
        ("badnets", {"poison_ration": 0.1}, "did you mean poison_ratio"),
        ("badnets", {"patch": 0}, "patch"),
        ("badnets", {"corner": "middle"}, "corner"),
        ("clean_label", {"norm": "3"}, "norm"),
        ("adversarial_embedding", {"regularization": 0}, "regularization"),
    ],
)
def test_illegal_setting(name: str, settings: dict[str, object], words: str, registry: Registry) -> None:
    with pytest.raises(SettingError, match=words):
        registry.build(Kind.ATTACK, name, settings)


def test_controls_are_measured_with_badnets_own_trigger() -> None:
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(NoAttack().backdoors[0].trigger(images), BadNets().trigger(images))
    assert AdversarialEmbedding().delivers_data is False
