"""DANCE: Dual-View Distribution Alignment for Dataset Condensation (Zhang et al., IJCAI 2024, arXiv:2406.01063).

L_c = || mean f_w(A x) - mean f_w(A s) ||^2 + alpha * CE(h_final(A s), c)
with w = lam * init + (1 - lam) * final of an expert, lam ~ U(0, 1), and the cross-entropy on its final weights.

- Needs: networks trained on the real set, by SGD with momentum, a falling rate and CutMix; it trains them, or takes a
  folder of them (`experts`).
- Cost: C * real_batch + 6 * C * ipc * factor^2 network passes a step; before that 3 * expert_count * expert_epochs
  passes over the real set.
- Departs: number of steps and rate of the pixels are those that TGDD gives, whose code kept its script; experts keep
  all snapshots, of which the first and the last are used; the last step is the result and no test image is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datastill.core.ranges import Count
from datastill.core.registry import method
from datastill.methods._stage_presets import StagePreset

if TYPE_CHECKING:
    from datastill.objectives.stage_match import StageMatch
    from datastill.surrogates.experts import ExpertsUnit
    from datastill.surrogates.stages import Stages


@method("dance", paper="arXiv:2406.01063", family="distribution")
@dataclass(frozen=True, kw_only=True)
class DANCE(StagePreset):
    """Match class means between an expert's first and last weights, with a cross-entropy on the last."""

    steps: Count = 10_000  #: image updates of every class

    def stages(self, unit: ExpertsUnit, last: int) -> Stages:
        """Weights between the first and the last."""
        from datastill.surrogates.stages import Stages

        return Stages(unit, (last,), law="interpolated", classify="final" if self.alpha else "none")

    def objective(self) -> StageMatch:
        """Class means and cross-entropy."""
        from datastill.objectives.stage_match import StageMatch

        return StageMatch(alpha=self.alpha)
