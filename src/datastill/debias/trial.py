"""Whether weights would help: a small network trained with them and one without, on images that neither has seen.

Where a bias is what most images of a class share, a network that is trained without weights goes by it: it is right on
held-out images that have it and wrong on those that weights take to be odd. One that is trained with weights is right
on many of the latter at little cost to the rest. Where odd images are only unusual, weights cost more than they gain.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.cost import pick_device
from datastill.core.errors import InputError
from datastill.core.plan import Progress, silent
from datastill.core.rng import Rng

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: Share of each class that is held out, share of that which counts as odd, and odd images that say something.
HELD, ODD, FEWEST = 0.2, 0.05, 50
NO_TRIAL = (
    f"The weights were not tried. That takes {FEWEST} held-out images that count as odd, a twentieth of the fifth of "
    f"each class that is held out, rounded down: about {FEWEST / HELD / ODD:,.0f} real images, more where classes are "
    "small, and weights that do not rest on a handful of them."
)
#: Times that all of it is done, each with other images held out: one is off by up to five points.
DRAWS = 3
#: Steps at each rate, images in a step, width of the network.
STEPS, BATCH, WIDTH = ((300, 0.02), (100, 0.004)), 64, 16
#: Points on odd images that a point on all of them must bring.
WORTH = 2.0


@dataclass(frozen=True)
class Trial:
    """Accuracies on held-out images, fractions, means over several draws of what is held out.

    Attributes:
        all_plain, odd_plain: of the network trained without weights, on all of them and on the odd ones.
        all_weighted, odd_weighted: of the one trained with weights.
        held, odd: how many images these are in a draw.
    """

    all_plain: float
    odd_plain: float
    all_weighted: float
    odd_weighted: float
    held: int
    odd: int

    @property
    def gain(self) -> float:
        """On odd images."""
        return self.odd_weighted - self.odd_plain

    @property
    def loss(self) -> float:
        """On all images; below 0 where weights help there too."""
        return self.all_plain - self.all_weighted

    @property
    def may_help(self) -> bool:
        """Whether weights gain on odd images more than twice what they lose on all."""
        return self.gain > WORTH * max(0.0, self.loss)

    @property
    def verdict(self) -> str:
        """What it says, in a few sentences."""
        rule = (
            "more than twice as much, so they may help, and the picture decides"
            if self.may_help
            else "not twice as much, so do without them unless you know of a bias"
        )
        return (
            f"A small network on held-out images (mean of {DRAWS} draws): on the {self.odd:,} that these weights take "
            f"for odd {100 * self.odd_plain:.1f} % without weights and {100 * self.odd_weighted:.1f} % with them, on "
            f"all {self.held:,} {100 * self.all_plain:.1f} and {100 * self.all_weighted:.1f} %. Weights gain "
            f"{100 * self.gain:.1f} points on odd images and cost {100 * self.loss:.1f} on all: {rule}."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**{k: round(v, 4) for k, v in asdict(self).items()}, "may_help": self.may_help}


def trial(real: RealSet, seed: int = 0, device: str = "cpu", progress: Progress = silent) -> Trial | None:
    """Train both networks, a few hundred steps each, and score them on held-out training images; three times.

    Args:
        real: the set with its weights; its test split is not read.
        seed: of what is held out, of the draws and of all networks.
        device: where to train.
        progress: told how far it is.

    Returns:
        What was found; None where fewer than fifty held-out images would count as odd, or where all that weighs
        anything in a class is held out.

    Raises:
        InputError: the set has no weights.
    """
    if real.weights is None:
        raise InputError("The set has no weights; weigh it first.")
    found = []
    for draw in range(DRAWS):
        kept, held = real.split(HELD, seed + draw)
        odd = heaviest(held)
        if int(odd.sum()) < FEWEST:
            return None
        rng = Rng(seed + draw).child("weigh", "trial")
        assert kept.weights is not None
        if not bool(torch.isin(kept.labels, kept.labels[kept.weights > 0]).all()):
            return None
        for k, weights in enumerate((torch.ones(len(kept)), kept.weights)):
            progress("a trial of the weights", 2 * draw + k, 2 * DRAWS, {})
            found.append(_right(held, odd, _trained(kept, weights, rng, pick_device(device))))
    progress("a trial of the weights", 2 * DRAWS, 2 * DRAWS, {})
    means = torch.tensor(found, dtype=torch.float64).view(DRAWS, 4).mean(0)
    all_plain, odd_plain, all_weighted, odd_weighted = means.tolist()
    return Trial(all_plain, odd_plain, all_weighted, odd_weighted, len(held), int(odd.sum()))


def _right(held: RealSet, odd: Tensor, network: torch.nn.Module) -> tuple[float, float]:
    """Accuracy on all held-out images, and on the odd ones."""
    from datastill.training.hard import predict

    logits = predict(network, lambda index: held.batch(index).x, len(held), device=next(network.parameters()).device)
    right = logits.argmax(1).cpu() == held.labels
    return float(right.double().mean()), float(right[odd].double().mean())


def heaviest(held: RealSet) -> Tensor:
    """Which images are among the heaviest twentieth of their class, (n,) bool; the set has weights."""
    assert held.weights is not None
    odd = torch.zeros(len(held), dtype=torch.bool)
    for members in map(held.class_index, range(held.classes)):
        order = held.weights[members].argsort(descending=True, stable=True)
        odd[members[order[: int(ODD * len(members))]]] = True
    return odd


def _trained(real: RealSet, weights: Tensor, rng: Rng, device: torch.device) -> torch.nn.Module:
    """A small network after a few hundred steps on images that are drawn by weight."""
    from datastill.models import narrowed, resolve_network
    from datastill.training.hard import Schedule, train

    network = narrowed(resolve_network(None, **real.network_shape), WIDTH)(rng.derive("network"))
    for part, (steps, rate) in enumerate(STEPS):
        generator = rng.generator("draws", part)
        drawn = torch.multinomial(weights.double(), steps * BATCH, replacement=True, generator=generator)

        def images(index: Tensor, drawn: Tensor = drawn) -> Tensor:
            return real.batch(drawn[index]).x

        schedule = Schedule(passes=1, lr=rate, batch=BATCH)
        train(network, images, real.labels[drawn], schedule, rng.child("training", part), device=device)
    return network
