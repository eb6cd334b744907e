"""The blind attack's objective: losses of several tasks over one batch, balanced at every step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gauntlet.errors import DivergedError, SettingError
from gauntlet.images import Images
from gauntlet.maths.grad_cam import cam_layer, tapped
from gauntlet.maths.mgda import balance, gram
from gauntlet.maths.surrogate import surrogate
from gauntlet.network import Network
from gauntlet.objective import Batch, Objective

from ._blind_settings import BlindSettings
from ._evasion import Centroids, MaskSearch, heat, heat_excess, latent_distance, quadratic_penalty

__all__ = ["Anchor", "BlindLoss", "Planted"]

_RECENT = 1000
"""Normal losses over which loss_threshold is judged."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A backdoor as the loss plants it. plant: images float [n, C, H, W], their labels, a generator and the auxiliary
    labels, if any, to as many triggered images, of 8 bits, and the labels that they should get
    (`gauntlet.synthesizers.Painter`).
    """

    name: str
    plant: Callable[[Images, Tensor, torch.Generator, Tensor | None], tuple[Images, Tensor]]


@dataclass(frozen=True, eq=False)
class Anchor:
    """A network without a backdoor (eval mode), and for EWC its parameters and their importance, by name."""

    network: Network
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    importance: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A group of images after its pass: logits and features of its own, maps of the whole pass and its rows in them."""

    logits: Tensor
    features: Tensor
    maps: Tensor | None
    rows: slice


class BlindLoss(Objective):
    """L = sum of alpha_t * l_t over the tasks normal, backdoor (one each) and evasion (Bagdasaryan & Shmatikov 2021).

    Clean and triggered images go through the network in one pass where it normalises over the batch: its running
    statistics are then those of the mixture that it was trained on. latest: each task's loss and weight in the last
    attacked step. label_smoothing: the normal task's alone. auxiliary: int64 [N], the second labels of the training
    set, on the device. It keeps state between steps, so that it serves one training.
    """

    def __init__(
        self,
        settings: BlindSettings,
        planted: Sequence[Planted],
        *,
        shape: tuple[int, int, int],
        classes: int,
        generator: torch.Generator,
        label_smoothing: float = 0.0,
        anchor: Anchor | None = None,
        auxiliary: Tensor | None = None,
    ) -> None:
        self.settings = settings
        self.auxiliary = auxiliary
        self.planted = tuple(planted)
        self.classes = classes
        self.label_smoothing = label_smoothing
        self.anchor = anchor
        self.latest: dict[str, tuple[Tensor, float]] = {}
        masked = {"neural_cleanse", "mask_norm"} & set(settings.evasion)
        self._searches = [MaskSearch(shape, settings.mask_plan, generator) for _ in (planted if masked else ())]
        self._centroids = Centroids(classes)
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def loss(self, network: Network, batch: Batch) -> Tensor:
        if not self._attacks(batch.generator):
            normal = cross_entropy(network(batch.images).float(), batch.labels, label_smoothing=self.label_smoothing)
            self._remember(normal)
            return normal
        losses = self.losses(network, batch)
        self._remember(losses["normal"])
        if self.settings.balance == "mgda":
            return self._balanced(network, losses)
        scales = dict(zip(losses, self.settings.scales, strict=True))
        self.latest = {name: (loss.detach(), scales[name]) for name, loss in losses.items()}
        return torch.stack([scales[name] * loss for name, loss in losses.items() if scales[name]]).sum()

    def resumable(self) -> bool:
        # Masks under search, centroids and recent losses are in no module.
        stateful = {"neural_cleanse", "mask_norm", "spectral"} & set(self.settings.evasion)
        return not stateful and self.settings.loss_threshold is None

    def reported(self) -> Mapping[str, float]:
        losses = {f"Loss_{name}": float(loss) for name, (loss, _) in self.latest.items()}
        return losses | {f"Scale_{name}": weight for name, (_, weight) in self.latest.items()}

    def losses(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        """The loss of each task over one batch, normal first, in the order of `scales`."""
        evasion, labels = self.settings.evasion, batch.labels
        rows = slice(0, self._attacked(len(labels)))
        source, true = batch.images[rows], labels[rows]
        second = None if self.auxiliary is None else self.auxiliary[batch.positions[rows]]
        made = [each.plant(source, true, batch.generator, second) for each in self.planted]
        wanted = [aims for _, aims in made]
        groups = [batch.images, *(images for images, _ in made)]
        self._search(network, source, wanted)
        stamped = self._stamped(source) if "neural_cleanse" in evasion else []
        groups += [images for images, _ in stamped]
        seen = self._passes(network, groups)
        clean, triggered, masked = seen[0], seen[1 : 1 + len(wanted)], seen[1 + len(wanted) :]
        found = {"normal": cross_entropy(clean.logits, labels, label_smoothing=self.label_smoothing)}
        for each, after, aim in zip(self.planted, triggered, wanted, strict=True):
            found[each.name] = cross_entropy(after.logits, aim)
        for name in evasion:
            if name == "neural_cleanse":
                terms = [
                    cross_entropy(each.logits, true[rows]) for each, (_, rows) in zip(masked, stamped, strict=True)
                ]
                found[name] = torch.stack(terms).mean() if terms else clean.logits.sum() * 0
            elif name == "mask_norm":
                pairs = zip(self._searches, wanted, strict=True)
                few = slice(self.settings.nc_batch)
                terms = [search.lost_mask(network, source[few], aim[few]) for search, aim in pairs]
                found[name] = torch.stack(terms).mean()
            elif name == "sentinet":
                found[name] = self._heat(clean, labels, triggered, wanted)
            elif name == "spectral":
                found[name] = self._latent(clean, batch, triggered, wanted)
            else:
                found[name] = self._kept(network)
        return found

    def probe(self, network: Network, batch: Batch) -> None:
        """Raise SettingError when the normal or a backdoor task has no gradient, or any task's is not finite."""
        losses = self.losses(network, batch)
        products, _ = _gradients(network, list(losses.values()))
        squares = dict(zip(losses, products.diagonal().tolist(), strict=True))
        dead = [name for name in ("normal", *(each.name for each in self.planted)) if squares[name] == 0]
        wild = [name for name, square in squares.items() if not square < float("inf")]
        if dead or wild:
            what = f"zero ({', '.join(dead)})" if dead else f"not finite ({', '.join(wild)})"
            raise SettingError(
                f"blind: on the network as it starts, gradients are {what}; legal: a network with trained parameters "
                "and finite losses"
            )

    def _attacks(self, generator: torch.Generator) -> bool:
        limit = self.settings.loss_threshold
        if limit is not None and (not self._recent or sum(self._recent) / len(self._recent) >= limit):
            return False
        if self.settings.alternating == 1:
            return True
        return float(torch.rand((), generator=generator)) < self.settings.alternating

    def _remember(self, normal: Tensor) -> None:
        if self.settings.loss_threshold is not None:
            self._recent.append(float(normal.detach()))

    def _attacked(self, count: int) -> int:
        share = min(count, max(1, round(self.settings.poisoning_proportion * count)))
        return min(share, self.settings.clip_batch or share)

    def _search(self, network: Network, source: Images, wanted: Sequence[Tensor]) -> None:
        dealt = torch.arange(self.settings.nc_steps * self.settings.nc_batch, device=source.device) % len(source)
        for at in torch.split(dealt, self.settings.nc_batch):
            for search, aim in zip(self._searches, wanted, strict=False):
                search.step(network, source[at], aim[at])

    def _stamped(self, source: Images) -> list[tuple[Images, Tensor]]:
        """The images under the masks of each search that has any to show, and which of the images they are."""
        found = [search.stamp(source[: self.settings.nc_batch]) for search in self._searches]
        return [(images, rows) for images, rows in found if len(rows)]

    def _passes(self, network: Network, groups: Sequence[Images]) -> list[_Seen]:
        layer = cam_layer(network) if "sentinet" in self.settings.evasion else None
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            # The same gradients, each task's through its own images alone.
            return [part for group in groups for part in _passed(network, [group], layer)]
        return _passed(network, groups, layer)

    def _heat(self, clean: _Seen, labels: Tensor, triggered: Sequence[_Seen], wanted: Sequence[Tensor]) -> Tensor:
        cold = _heat_of(clean, labels)
        return torch.stack(
            [heat_excess(_heat_of(after, aim), cold) for after, aim in zip(triggered, wanted, strict=True)]
        ).mean()

    def _latent(self, clean: _Seen, batch: Batch, triggered: Sequence[_Seen], wanted: Sequence[Tensor]) -> Tensor:
        similarity = self.settings.spectral_similarity
        if self.settings.latent == "clean":
            assert self.anchor is not None
            with torch.no_grad():
                fixed, _ = self.anchor.network.features_and_logits(batch.images)
            return latent_distance(clean.features, fixed.float(), similarity)
        self._centroids.update(clean.features, batch.labels)
        terms = []
        for after, aim in zip(triggered, wanted, strict=True):
            means, known = self._centroids.of(aim)
            terms.append(
                latent_distance(after.features[known], means[known], similarity)
                if known.any()
                else after.features.sum() * 0
            )
        return torch.stack(terms).mean()

    def _kept(self, network: Network) -> Tensor:
        assert self.anchor is not None
        return quadratic_penalty(network, self.anchor.parameters, self.anchor.importance, self.settings.ewc_lambda)

    def _balanced(self, network: Network, losses: Mapping[str, Tensor]) -> Tensor:
        values = torch.stack([loss.detach() for loss in losses.values()])
        products, gradients = _gradients(network, list(losses.values()))
        if not products.isfinite().all() or not values.isfinite().all():
            bad = [
                name for name, square in zip(losses, products.diagonal().tolist(), strict=True) if not square < 1e300
            ]
            raise DivergedError(
                f"blind: the gradients of {', '.join(bad) or 'a task'} are no longer finite; lower the learning rate"
            )
        try:
            weights = balance(products, values.cpu(), self.settings.normalise)
        except ValueError:
            raise DivergedError(
                f"blind: the gradients of all tasks ({', '.join(losses)}) are zero, so that nothing is left to train; "
                "lower the learning rate"
            ) from None
        self.latest = {
            name: (value, float(weight)) for name, value, weight in zip(losses, values, weights, strict=True)
        }
        combined = []
        for parts in zip(*gradients, strict=True):
            terms = [part * float(weight) for part, weight in zip(parts, weights, strict=True) if part is not None]
            combined.append(torch.stack(terms).sum(0) if len(terms) != 1 else terms[0])
        total = (weights.to(values) * values).sum()
        return surrogate(total, _trained(network), combined)


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [value for value in network.parameters() if value.requires_grad]


def _gradients(network: nn.Module, losses: Sequence[Tensor]) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """The Gram matrix of the tasks' gradients, and the gradients themselves, task by task."""
    parameters = _trained(network)
    with torch.autocast(losses[0].device.type, enabled=False):
        found = [
            torch.autograd.grad(
                loss, parameters, retain_graph=number < len(losses) - 1, allow_unused=True, materialize_grads=True
            )
            for number, loss in enumerate(losses)
        ]
        # A product, too: autocast would round it to bf16.
        return gram(torch.stack([torch.cat([part.flatten() for part in parts]) for parts in found])), found


def _passed(network: Network, groups: Sequence[Images], layer: nn.Module | None) -> list[_Seen]:
    sizes = [len(group) for group in groups]
    images = torch.cat(list(groups)).contiguous(memory_format=torch.channels_last)
    tap: AbstractContextManager[list[Tensor]] = tapped(layer) if layer is not None else nullcontext([])
    with tap as maps:
        features, logits = network.features_and_logits(images)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [
        _Seen(
            logits[start : start + size].float(),
            features[start : start + size].float(),
            maps[-1] if maps else None,
            slice(start, start + size),
        )
        for start, size in zip(starts, sizes, strict=True)
    ]


def _heat_of(seen: _Seen, classes: Tensor) -> Tensor:
    assert seen.maps is not None
    scores = seen.logits.gather(1, classes[:, None])[:, 0]
    return heat(scores, seen.maps, seen.rows)
