"""Protocols that train two towers on pairs and score them by retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from datastill.evaluation.protocols import Extras, Protocol

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.evaluation.metrics import Metric
    from datastill.training.trainers import Trainer


@dataclass(frozen=True)
class TrainsTowers(Protocol):
    """SGD on the contrastive loss, each tower at the rate that the set learned for it, if it did."""

    tries: ClassVar[tuple[float, ...]] = (0.01, 0.03, 0.1)

    accepts: tuple[str, ...] = ("pairs",)
    learned_lr: bool = True

    @property
    def metric(self) -> Metric:
        """See `Protocol`."""
        from datastill.evaluation.retrieval import Retrieval

        return Retrieval()

    def trainer(self, real: RealSet, rate: float | None = None, extras: Extras | None = None) -> Trainer:
        """See `Protocol`."""
        from datastill.training.contrastive import Contrastive

        schedule = self.schedule(real.name, real.shape, rate)
        learned = None if extras is None else extras.rate_text
        return Contrastive(schedule, schedule.lr if learned is None else learned)


PROTOCOLS = (
    TrainsTowers(
        "vl-v1",
        "pairs: two towers, contrastive loss, 50 passes, at the rates that the set learned",
        passes=50,
        drop_after=33,
        lr=0.03,
        batch=64,
    ),
)
