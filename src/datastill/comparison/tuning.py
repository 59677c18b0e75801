"""A learning rate for a network and a kind of set, chosen on real training images held back, never on test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from datastill.core.artifact import DistilledSet
from datastill.core.errors import Diverged
from datastill.core.rng import Rng
from datastill.evaluation import evaluate
from datastill.evaluation.protocols import Protocol

if TYPE_CHECKING:
    from datastill.data.real import RealSet

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
#: At most so many images choose, and at most this part of the training set.
VALIDATION_IMAGES, VALIDATION_PART = 2000, 0.2
#: At least so many networks are trained for every rate.
TRAININGS = 3


def validation_of(real: RealSet, seed: int = 0) -> RealSet:
    """The real set with a stratified part of its *training* images in the place of the test split."""
    part = min(VALIDATION_PART, VALIDATION_IMAGES / len(real))
    kept, held = real.split(part, seed)
    return replace(kept, test=replace(held, test=None))


def with_rate(protocol: Protocol, rate: float) -> Protocol:
    """The protocol with another learning rate, under a name of its own."""
    return protocol if rate == protocol.lr else replace(protocol, name=f"{protocol.name}, lr {rate:g}", lr=rate)


def tune(
    sets: Sequence[DistilledSet], validation: RealSet, protocol: Protocol, network: Any, own: float, **options: Any
) -> tuple[float, dict[float, float]]:
    """The learning rate with the best validation accuracy over all sets, and the accuracy of each.

    Tried are `RATES` and `own`, the sets' or the protocol's. A rate at which training diverges is out; of
    equals the smallest is taken.
    """
    networks = math.ceil(TRAININGS / len(sets))
    found: dict[float, float] = {}
    for rate in sorted({*RATES, own}):
        try:
            scores = [
                evaluate(
                    one,
                    validation,
                    protocol=with_rate(protocol, rate),
                    network=network,
                    networks=networks,
                    seed=Rng(int(one.manifest["seed"])).derive("tuning"),
                    random=False,
                    **options,
                ).mean
                for one in sets
            ]
        except Diverged:
            continue
        found[rate] = sum(scores) / len(scores)
    if not found:
        raise Diverged(f"Training diverged at every learning rate on {network}; look for extreme values in the images.")
    return max(found, key=lambda rate: found[rate]), found
