"""Difficulty-Aligned Trajectory Matching (DATM: Guo et al., ICLR 2024, arXiv:2310.05773).

L = || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2
as in MTT, with t from a window that fits the size of the set: small sets learn what experts learn early and easily,
large ones what they learn late. Labels are learned beside the images.

- Needs: experts, trained by GSAM as FTD's, for longer.
- Cost: as MTT, twice as much for the experts, and a pass over the set for each expert at the start.
- Departs: an image that no expert recognizes has a label all the same, and the search for such images ends; labels are
  logits, said to be such, of which every protocol takes the softmax; starts and first labels are of the epoch where the
  last segment ends, while `--recipe paper` trains experts for 100 epochs.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from datastill.core.errors import InputError
from datastill.core.ranges import Amount, Count, Few, Momentum, Rate, RateOrAuto
from datastill.core.registry import method
from datastill.methods._own_experts import OwnExperts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Self

    from datastill.core.plan import Decoder, Init, Plan, Task, UpdateRule
    from datastill.surrogates.experts import ExpertsUnit

#: RMS of the first steps of label logits, where no rate is given.
_LABEL_STEP = 0.01


@method("datm", paper="arXiv:2310.05773", family="trajectory")
@dataclass(frozen=True, kw_only=True)
class DATM(OwnExperts):
    """Lead a student along the part of trajectories that fits the size of the set, on labels that are learned."""

    paper_values: ClassVar[dict[str, Any]] = {"expert_last": 100}

    steps: Count = 10_000  #: image updates
    init: str = "correct"  #: start from images that an expert recognizes, or as in mtt: "real", "noise"
    min_start: Amount = 0  #: T-, the least epoch at which a student starts
    first_start: Amount = 0  #: T, bound (exclusive) on start epochs at the beginning; 0 is the middle of the window
    grow_steps: Amount = 0  #: steps after which the bound is max_start; 0 is a fifth of all
    threshold: Rate = 1.0  #: a step whose loss is above changes nothing
    label_lr: RateOrAuto = 0.0  #: SGD learning rate of the labels; 0 takes it from the first gradients
    label_momentum: Momentum = 0.9  #: SGD momentum of the labels
    #: how experts are trained: "gsam", with numbers as in gsam:alpha=0.3, or another policy
    expert_policy: str = "gsam:alpha=0.3"
    expert_epochs: Few = 100  #: their epochs at most; they stop where the last segment ends, or after `expert_last`
    expert_last: Amount = 0  #: epochs that they are trained for at least: the last gives starts and first labels

    def build(self, task: Task) -> Plan:
        """MTT's plan, with learned labels and a window that grows."""
        from datastill.labels.correct_logits import CorrectLogits
        from datastill.labels.learned import Learned
        from datastill.surrogates.experts import Experts

        plan, unit = super().build(task), self.experts_unit()
        return replace(
            plan,
            objective=replace(plan.objective, labels="logits", threshold=self.threshold),  # type: ignore[type-var]
            surrogates=Experts(unit, span=self.span, max_start=self._window(), min_start=self.min_start),
            labels=Learned("logits", start=CorrectLogits(unit)),
        )

    def experts_unit(self) -> ExpertsUnit:
        """The experts that are trained, or taken from their folder."""
        unit = super().experts_unit()
        least = min(self.expert_last, self.expert_epochs)
        return replace(unit, stop_after=max(unit.stop_after or 0, least))

    def scaled(self, task: Task, seconds: float) -> Self:
        """As MTT; the window goes with its end, and its growth with the steps."""
        return self._followed(super().scaled(task, seconds))

    def at_pace(self, task: Task, seconds: float, preparation: float, step: float) -> Self:
        """As MTT; the window goes with its end, and its growth with the steps."""
        return self._followed(super().at_pace(task, seconds, preparation, step))

    def with_cheap_preparation(self, task: Task, seconds: float, given: Collection[str]) -> Self:
        """As MTT; the window goes with its end."""
        return self._followed(super().with_cheap_preparation(task, seconds, given))

    @contextmanager
    def rehearse(self, task: Task) -> Iterator[tuple[Self, float]]:
        """As MTT, with the window of one epoch that its experts have."""
        with super().rehearse(task) as (method, seconds):
            yield self._followed(method), seconds

    def _followed(self, other: Self) -> Self:
        """Another setting, whose window begins in proportion to where it ends now."""
        if (other.max_start, other.steps) == (self.max_start, self.steps):
            return other
        end, before = other.max_start, self.max_start
        least = min(end - 1, self.min_start * end // before)
        first = min(end, max(least + 1, self.first_start * end // before)) if self.first_start else 0
        grow = math.ceil(self.grow_steps * other.steps / self.steps)
        last = 0 if end < before else self.expert_last
        return replace(other, min_start=least, first_start=first, grow_steps=grow, expert_last=last)

    def _window(self) -> Any:
        """The bound on start epochs as a function of the progress."""
        from datastill.surrogates.experts import Growing

        first = self.first_start or (self.min_start + self.max_start + 1) // 2
        return Growing(first, self.max_start, (self.grow_steps or self.steps / 5) / self.steps)

    def _check(self) -> None:
        super()._check()
        if self.min_start >= self.max_start:
            raise InputError(
                f"No epoch is left to start from: starts lie from min_start={self.min_start} to max_start - 1, and "
                f"max_start is {self.max_start}; lower min_start, or raise max_start."
            )
        if self.first_start and not self.min_start < self.first_start <= self.max_start:
            raise InputError(
                f"The window begins with a bound above min_start={self.min_start} and up to max_start="
                f"{self.max_start}, not first_start={self.first_start}."
            )
        if self.canvas > 1:
            raise InputError("Learned labels belong to whole images, not to crops; leave canvas at 1.")

    def _images(self, task: Task) -> tuple[Init, Decoder]:
        from datastill.decoders.pixels import Pixels
        from datastill.surrogates.experts.starts import CorrectReal

        if self.init != "correct":
            return super()._images(task)
        return CorrectReal(self.experts_unit()), Pixels()

    def _rules(self, rate: Any) -> dict[str, UpdateRule]:
        from datastill.core.update import Sgd
        from datastill.engines.hypergradient import Calibrated

        labels: UpdateRule = Calibrated(_LABEL_STEP, self.label_momentum)
        if self.label_lr:
            labels = Sgd(self.label_lr, self.label_momentum)
        return {**super()._rules(rate), "labels": labels}
