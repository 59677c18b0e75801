"""Flat Trajectory Distillation (FTD: Du et al., CVPR 2023, arXiv:2211.11004).

L = || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2
as in MTT, with experts whose trajectories are flat, so that it costs a student little to stray from them; what is kept
is an exponential moving average of the images.

- Needs: experts, trained by GSAM in two passes a step where MTT's take one.
- Cost: as MTT, and twice as much for the experts.
- Departs: the average is over the steps alone, without the initial images (`--recipe paper` keeps them in it); the
  gradient is an exact adjoint recursion, and the last step is the result, as in MTT.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from datastill.core.ranges import Momentum
from datastill.core.registry import method
from datastill.methods._own_experts import OwnExperts
from datastill.surrogates.expert_cost import SETTLED

if TYPE_CHECKING:
    from typing import Self

    from datastill.core.plan import Task, UpdateRule

#: Of a run that is cut short, what the average is mostly over.
_LAST = 0.2


@method("ftd", paper="arXiv:2211.11004", family="trajectory")
@dataclass(frozen=True, kw_only=True)
class FTD(OwnExperts):
    """Lead a student along flat trajectories, and keep the mean of the images on the way."""

    paper_values: ClassVar[dict[str, Any]] = {"ema_start": True}
    settled_by_budget: ClassVar[frozenset[str]] = SETTLED | {"ema", "ema_start"}

    ema: Momentum = 0.999  #: decay of the moving average of the images that is kept; 0 keeps the last images
    ema_start: bool = False  #: the average begins with the initial images, as published, instead of the first step's
    #: how experts are trained: "gsam", with numbers as in gsam:alpha=0.3, or another policy
    expert_policy: str = "gsam"

    def scaled(self, task: Task, seconds: float) -> Self:
        """As MTT, with an average that a short run fills."""
        return self._followed(super().scaled(task, seconds))

    def at_pace(self, task: Task, seconds: float, preparation: float, step: float) -> Self:
        """As MTT, with an average that a short run fills."""
        return self._followed(super().at_pace(task, seconds, preparation, step))

    def _followed(self, other: Self) -> Self:
        """Another setting, whose average leaves the start behind: published ones are made for thousands of steps."""
        if other.steps >= self.steps:
            return other
        return replace(other, ema=min(self.ema, max(0.0, 1 - 1 / (_LAST * other.steps))), ema_start=False)

    def _rules(self, rate: Any) -> dict[str, UpdateRule]:
        from datastill.core.wrapped import Ema

        rules = super()._rules(rate)
        if self.ema:
            rules["images"] = Ema(rules["images"], self.ema, self.ema_start)
        return rules
