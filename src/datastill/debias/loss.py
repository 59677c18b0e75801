"""Weights by loss: w_i ~ CE_i^p on a small network that was led to the bias, and so is wrong on images without it.

The network is trained for a little more than one pass by the generalized cross-entropy (Zhang and Sabuncu, NeurIPS
2018, arXiv:1805.07836), whose gradient p_y^q dCE favors images that are right already: what is easy is learned, what
contradicts it is given up. That is the biased half of *Learning from Failure* (Nam et al., NeurIPS 2020,
arXiv:2007.02561), which weighs by the loss beside that of a second network; the loss alone serves here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, device, nn

from datastill.core.errors import Diverged, InputError, nearest
from datastill.core.plan import Progress, chunk_for
from datastill.core.ranges import MANY, AnyRate, Count, Probability, Side, check_fields
from datastill.core.rng import Rng, isolated
from datastill.core.threads import threads_for
from datastill.debias.diagnosis import KeptRecord
from datastill.debias.kde import inverse_density
from datastill.training.dfa import generalized_cross_entropy
from datastill.training.extractor import WIDTH, small_backbone, trained_key

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.models import NetworkFactory

#: Steps where none are given: passes over the set, and between how few and how many.
PASSES, FEWEST, MOST = 1.5, 300, 1200
#: Parts of the steps after which the loss of every image is taken; the mean of these counts.
TAKEN = (0.5, 1.0)
#: Losses below this count as this.
_LEAST = 1e-4


class LossRecord(KeptRecord):
    """What is kept beside weights by loss."""

    biased_network: dict[str, Any]


@dataclass(frozen=True)
class ByLoss:
    """The way "loss": how the biased network is trained, and what becomes of its losses.

    Raises:
        InputError: a number out of range.
    """

    network: str = ""  #: as `resolve_network` reads it; "" is a batch-norm ConvNet that fits the size
    width: Side = WIDTH  #: of the default network
    steps: Count | None = None  #: None is one and a half passes, from 300 to 1,200 steps; more learn what is odd, too
    batch: Annotated[int, Ge(2), Le(MANY)] = 64  #: images per step
    lr: AnyRate = 1e-3  #: of Adam
    q: Probability = 0.7  #: of the generalized cross-entropy: 0 is the plain one, 1 gives up soonest
    power: Annotated[float, Ge(0), Le(100)] = 0.7  #: weights are loss^power; more is sharper

    record: ClassVar[type[KeptRecord]] = LossRecord
    advice: ClassVar[tuple[str, str]] = (
        "the biased network is equally wrong on all images, after too few steps or at a bad rate (lr), or there is no "
        "bias to go by",
        "lower the power (loss:power=0.5), or train the biased network for fewer steps (loss:steps=150)",
    )

    def __post_init__(self) -> None:
        check_fields(self, "{name} of loss")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """By name; what is None is automatic, a whole number."""
        return {f.name: 0 if f.default is None else f.default for f in fields(cls)}

    @classmethod
    def words(cls, name: str) -> tuple[str, ...]:
        """None."""
        return ()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """With these numbers.

        Raises:
            InputError: there is no such option.
        """
        known = list(cls.defaults())
        for name in options:
            if name not in known:
                raise InputError(f"De-biasing by loss has no option {name!r}. {nearest(name, [*known, 'draw'])}")
        return cls(**options)

    def settled(self, n: int) -> Self:
        """The same for a set of n images, with `steps` as a number."""
        return replace(self, steps=self.steps or min(MOST, max(FEWEST, math.ceil(PASSES * n / self.batch))))

    def factory(self, real: RealSet) -> NetworkFactory:
        """What builds the network for these images."""
        channels, *size = real.shape
        return small_backbone(channels, real.classes, (size[0], size[1]), self.width, self.network)

    def key(self, real: RealSet, seed: int, device: device) -> dict[str, Any]:
        """Everything that the weights depend on, JSON-able."""
        return trained_key("debias-loss", asdict(self.settled(len(real))), self.factory(real), real, seed, device)

    def run(self, real: RealSet, seed: int, device: device, progress: Progress) -> tuple[Tensor, dict[str, Any]]:
        """Train the network on the pixels of `real`, whatever its Space and weights, and weigh by its losses."""
        losses = self.losses(real, seed, device, progress)
        weights = inverse_density(1 / losses.clamp_min(_LEAST), real.labels, self.power)
        return weights, {"biased_network": asdict(self.settled(len(real)))}

    def losses(self, real: RealSet, seed: int, device: device, progress: Progress) -> Tensor:
        """The mean cross-entropy of every image on the biased network, half-way and at the end, (n,) float64.

        Raises:
            Diverged: a loss is not finite.
        """
        factory, rng = self.factory(real), Rng(seed).child("debias-loss")
        steps = self.settled(len(real)).steps or 1
        moments = {max(1, round(part * steps)) for part in TAKEN}
        found, read = [], _standardized(real)
        with threads_for(factory.macs):
            network = factory(rng.derive("network")).to(device).train()
            optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
            for step in range(steps):
                with isolated(rng.derive("dropout", step)):
                    index = _batch(len(real), self.batch, step, rng)
                    self._update(network, optimizer, read(index).to(device), real.labels[index].to(device))
                progress("biased network", step + 1, steps, {})
                if step + 1 in moments:
                    found.append(_losses(network, read, real.labels, chunk_for(factory.macs, device), device))
        losses = torch.stack(found).mean(0)
        if not torch.isfinite(losses).all():
            raise Diverged("The training of the biased network diverged; lower its learning rate (lr).")
        return losses

    def _update(self, network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        loss = generalized_cross_entropy(network(x), y, self.q).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()

    def warnings(self, report: Mapping[str, Any]) -> list[str]:
        """None."""
        return []


def _batch(n: int, size: int, step: int, rng: Rng) -> Tensor:
    """Positions of the images of a step: passes in random orders, one after the other; the rest of a pass is left."""
    size = min(size, n)
    epoch, position = divmod(step, n // size)
    order = torch.randperm(n, generator=rng.generator("order", epoch))
    return order[position * size : (position + 1) * size]


def _standardized(real: RealSet) -> Callable[[Tensor], Tensor]:
    """Reads images at positions as pixels of mean 0 and deviation 1 in every channel, going by 1,000 of them."""
    some = real.pixels(torch.linspace(0, len(real) - 1, min(1000, len(real))).long())
    mean, std = some.mean((0, 2, 3), keepdim=True), some.std((0, 2, 3), keepdim=True).clamp_min(0.01)
    return lambda index: (real.pixels(index) - mean) / std


def _losses(network: nn.Module, read: Callable[[Tensor], Tensor], y: Tensor, chunk: int, device: device) -> Tensor:
    network.eval()
    with torch.no_grad():
        parts = [
            F.cross_entropy(network(read(index).to(device)).float().cpu(), y[index], reduction="none").double()
            for index in torch.arange(len(y)).split(chunk)
        ]
    network.train()
    return torch.cat(parts)
