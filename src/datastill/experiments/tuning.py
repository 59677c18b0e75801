"""A learning rate for a network and a kind of set, chosen on real training images held back, never on test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datastill.core.rng import Rng
from datastill.evaluation import evaluate
from datastill.evaluation.protocols import Protocol
from datastill.evaluation.rates import TRAININGS, best_rate, validation_of, with_rate
from datastill.evaluation.rates import WIDE_RATES as RATES
from datastill.store.artifact import DistilledSet

if TYPE_CHECKING:
    from datastill.data.real import RealSet

__all__ = ["RATES", "tune", "validation_of", "with_rate"]


def tune(
    sets: Sequence[DistilledSet], validation: RealSet, protocol: Protocol, network: Any, own: float, **options: Any
) -> tuple[float, dict[float, float]]:
    """The learning rate with the best validation accuracy over all sets, and the accuracy of each.

    Tried are `RATES` and `own`, the sets' or the protocol's. A rate at which training diverges is out; of
    equals the smallest is taken.
    """
    networks = math.ceil(TRAININGS / len(sets))

    def score(rate: float) -> float:
        scores = [
            evaluate(
                one,
                validation,
                protocol=with_rate(protocol, rate),
                network=network,
                networks=networks,
                seed=Rng(one.record.seed).derive("tuning"),
                random=False,
                **options,
            ).mean
            for one in sets
        ]
        return sum(scores) / len(scores)

    return best_rate((*RATES, own), score)
