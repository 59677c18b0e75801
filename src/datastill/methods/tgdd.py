"""TGDD: Trajectory Guided Dataset Distillation with Balanced Distribution (Ran et al., AAAI 2026, arXiv:2512.02469).

L_c = || mean f_e(A x) - mean f_e(A s) ||^2 + alpha * CE(h_e'(A s), c)
with e a snapshot of an expert's training, uniform over all of them, and e' uniform over the `window` snapshots from e
on.

- Needs: networks trained on the real set, as DANCE's; it trains them, or takes a folder of them (`experts`).
- Cost: C * real_batch + 6 * C * ipc * factor^2 network passes a step; before that 3 * expert_count * expert_epochs
  passes over the real set.
- Departs: all decoded images of a class are matched, not 200 of them; the last step is the result and no test image is
  read; random draws are derived from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datastill.core.ranges import Count, Few, RateOrAuto
from datastill.core.registry import method
from datastill.methods._stage_presets import StagePreset

if TYPE_CHECKING:
    from typing import Self

    from datastill.core.plan import Task
    from datastill.objectives.stage_match import StageMatch
    from datastill.surrogates.experts import ExpertsUnit
    from datastill.surrogates.stages import Stages


@method("tgdd", paper="arXiv:2512.02469", family="distribution")
@dataclass(frozen=True, kw_only=True)
class TGDD(StagePreset):
    """Match class means on the snapshots of experts, with a cross-entropy on a snapshot that comes soon after."""

    steps: Count = 10_000  #: image updates of every class
    alpha: RateOrAuto = 0.0  #: weight of the cross-entropy; 0 is 2.5 below 50 images per class and .5 from there on
    window: Few = 7  #: snapshots from the drawn one on, itself included, from which that of the cross-entropy is drawn
    expert_count: Few = 5  #: networks to train on the real set

    def for_task(self, task: Task) -> Self:
        """The learning rate of the pixels and the weight of the cross-entropy, which follow images per class."""
        return replace(super().for_task(task), alpha=self.alpha or (2.5 if task.ipc < 50 else 0.5))

    def stages(self, unit: ExpertsUnit, last: int) -> Stages:
        """Any snapshot, the initialization among them."""
        from datastill.surrogates.stages import Stages

        return Stages(unit, tuple(range(last + 1)), classify="window", window=self.window)

    def objective(self) -> StageMatch:
        """Class means and cross-entropy."""
        from datastill.objectives.stage_match import StageMatch

        return StageMatch(alpha=self.alpha)
