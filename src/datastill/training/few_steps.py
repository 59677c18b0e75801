"""Training in a few plain steps whose order and sizes came with the set (DD: Wang et al., 2018, arXiv:1811.10959)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.errors import Diverged, InputError
from datastill.core.rng import Rng, isolated
from datastill.core.runtime import Runtime
from datastill.engines.flat import FlatModel
from datastill.training.trainers import Labeled, Told, Trained

if TYPE_CHECKING:
    from datastill.models import Network
    from datastill.models.factory import NetworkFactory

#: Names of what belongs to a set beside its images: the turn of each image (n,), the raw step sizes (N,), and the
#: weights that all networks begin at (P,), if they do.
TURNS, RAW, START = "turns", "raw_steps", "start_weights"


def positions_of(turns: Tensor, steps: int) -> list[Tensor]:
    """The images of each of so many steps: turns come one after the other, round after round."""
    turns = turns.cpu()
    of_turn = [(turns == turn).nonzero().flatten() for turn in range(int(turns.max()) + 1)]
    return [of_turn[i % len(of_turn)] for i in range(steps)]


@dataclass(frozen=True, eq=False)
class StepsOfSet:
    """How a set wants to be trained on.

    Attributes:
        turns: of each image, (n,) int64.
        sizes: a_i, (N,).
        start: where networks begin, (P,), or None.
    """

    turns: Tensor
    sizes: Tensor
    start: Tensor | None = None

    @classmethod
    def of(cls, extra: Mapping[str, Tensor], name: str) -> Self | None:
        """From what a set has beside its images; None where it has no steps.

        Args:
            extra: named tensors of the set.
            name: of the set.

        Raises:
            InputError: they do not fit together.
        """
        turns, raw, start = (extra.get(part) for part in (TURNS, RAW, START))
        if turns is None or raw is None:
            return None
        sound = turns.dtype == torch.int64 and turns.ndim == 1 and raw.is_floating_point() and raw.ndim == 1
        if not sound or not len(raw) or len(turns.unique()) != int(turns.max()) + 1 or int(turns.min()) < 0:
            raise InputError(f"The steps of {name} do not fit together: its {TURNS} or {RAW} are damaged.")
        return cls(turns, F.softplus(raw.float()), start)

    def at(self, rate: float) -> Self:
        """The same order, all steps of one size."""
        return replace(self, sizes=torch.full_like(self.sizes, rate, dtype=torch.float64))


@dataclass(frozen=True)
class FewSteps:
    """Gradient descent by a set's own steps, in training mode; nothing is drawn but the first weights, and dropout."""

    steps: StepsOfSet

    @property
    def lr(self) -> float:
        """The mean step size."""
        return float(self.steps.sizes.mean())

    def train(
        self, factory: NetworkFactory, data: Labeled, rngs: Sequence[Rng], runtime: Runtime, told: Told
    ) -> Trained:
        """See `Trainer`.

        Raises:
            InputError: the set has its own first weights, and they are not this network's.
        """
        assert isinstance(data.x, Tensor)
        made, losses = [], []
        for k, rng in enumerate(rngs):
            network = factory(rng.derive("network")).to(runtime.device).train()
            if self.steps.start is not None:
                _begin(network, self.steps.start)
            losses.append(self._train(network, data.x.to(runtime.device), data.y.to(runtime.device), rng))
            made.append(network)
            told(k + 1, {"loss": losses[-1][-1]})
        return Trained(made, losses)

    def _train(self, network: Network, x: Tensor, y: Tensor, rng: Rng) -> list[float]:
        parameters, losses = list(network.parameters()), []
        order = positions_of(self.steps.turns, len(self.steps.sizes))
        with isolated(rng.derive("dropout")):
            for index, size in zip(order, self.steps.sizes.tolist(), strict=True):
                here = index.to(x.device)
                loss = F.cross_entropy(network(x[here]), y[here])
                for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    p.data.sub_(g, alpha=size)
                losses.append(float(loss.detach()))
        if not torch.isfinite(torch.tensor(losses)).all():
            raise Diverged("Training by the steps of the set diverged: a loss is not finite.")
        return losses


def _begin(network: Network, start: Tensor) -> None:
    """Put the weights (P,) into a network."""
    model = FlatModel(network)
    if start.shape != (model.size,):
        raise InputError(
            f"This set was made for networks that begin at {start.numel():,} weights of its own, and this network has "
            f"{model.size:,}; evaluate it on the network that it was distilled with, or under another protocol."
        )
    with torch.no_grad():
        named = dict(network.named_parameters())
        for name, value in model.split(start).items():
            named[name].copy_(value)
