"""Learning rates of an evaluation: learned with a set, or chosen on real training images held back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.errors import Diverged
from datastill.evaluation.protocols import Protocol

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.store.artifact import DistilledSet

#: What Random tries beside a set that learned a rate, and that rate with them.
RATES = (0.001, 0.003, 0.01, 0.03)
#: What a comparison tries, where a rate is for all sets or for another network.
WIDE_RATES = (*RATES, 0.1)
#: At most so many images choose, and at most this part of the training set.
VALIDATION_IMAGES, VALIDATION_PART = 2000, 0.2
#: At least so many networks are trained for every rate.
TRAININGS = 3


def learned_rate(one: DistilledSet) -> float | None:
    """The learning rate in a set's manifest, or None."""
    return one.record.student.lr


def rates_of(sets: Sequence[DistilledSet], protocol: Protocol) -> list[float]:
    """The learning rate of each set under a protocol: its own where the protocol takes it, else the protocol's."""
    learned = [learned_rate(one) if protocol.learned_lr else None for one in sets]
    return [protocol.lr if rate is None else rate for rate in learned]


def with_rate(protocol: Protocol, rate: float) -> Protocol:
    """The protocol with another learning rate for all sets, under a name of its own."""
    if rate == protocol.lr and not protocol.learned_lr:
        return protocol
    return replace(protocol, name=f"{protocol.name}, lr {rate:g}", lr=rate, learned_lr=False)


def validation_of(real: RealSet, seed: int = 0, without: Tensor | None = None) -> RealSet:
    """The real set with a stratified part of its *training* images in the place of the test split.

    Images at the positions `without` are neither kept nor held back, unless they are all that a class has.
    """
    if without is not None:
        free = torch.ones(len(real), dtype=torch.bool)
        free[without] = False
        left = torch.bincount(real.labels[free], minlength=real.classes)
        real = real.subset((free | (left < 2)[real.labels]).nonzero().flatten())
    part = min(VALIDATION_PART, VALIDATION_IMAGES / len(real))
    kept, held = real.split(part, seed)
    return replace(kept, test=replace(held, test=None))


def best_rate(rates: Iterable[float], score: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The rate with the highest score, and the score of each; of equals the smallest.

    A rate at which training diverges is out.

    Raises:
        Diverged: it diverges at all of them.
    """
    found: dict[float, float] = {}
    for rate in sorted(set(rates)):
        try:
            found[rate] = score(rate)
        except Diverged:
            continue
    if not found:
        raise Diverged("Training diverged at every learning rate; look for extreme values in the images.")
    return max(found, key=lambda rate: found[rate]), found
