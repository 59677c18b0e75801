"""NCFM: Dataset Distillation with Neural Characteristic Function (Wang et al., CVPR 2025, arXiv:2502.20653).

L_c = scale * mean_t sqrt( a (|P| - |Q|)^2 + (1 - a) 2 |P| |Q| (1 - cos(arg P - arg Q)) ) + alpha * CE(h_final(A s), c)
with P and Q the characteristic functions mean_n exp(i t'f_n) of the two sides at frequencies t, features at unit
length, a = 1/2, and networks between an expert's first and last weights, as DANCE's. As released, t ~ N(0, I); as in
the paper (`psi`), a scale mixture whose scales are learned against the images, and alpha = 0.

- Needs: networks trained on the real set, as DANCE's; it trains them, or takes a folder of them (`experts`).
- Cost: C * real_batch + 6 * C * ipc * factor^2 network passes a step, and 2 * frequencies * d for every image; before
  that 3 * expert_count * expert_epochs passes over the real set.
- Departs: the rate of AdamW is our choice; psi are the logarithms of the scales of groups of 16 frequencies; the last
  step is the result and no test image is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datastill.core.ranges import AdamRate, Count, Weight
from datastill.core.registry import method
from datastill.methods._stage_presets import StagePreset

if TYPE_CHECKING:
    from typing import Self

    from datastill.core.plan import Task, UpdateRule
    from datastill.objectives.stage_match import StageMatch
    from datastill.surrogates.experts import ExpertsUnit
    from datastill.surrogates.stages import Stages


@method("ncfm", paper="arXiv:2502.20653", family="distribution")
@dataclass(frozen=True, kw_only=True)
class NCFM(StagePreset):
    """Match characteristic functions of features between an expert's first and last weights."""

    steps: Count = 20_000  #: image updates
    real_batch: Count = 1024  #: real images per class and step
    image_lr: AdamRate = 0.01  #: AdamW learning rate of the pixels in [0, 1]
    frequencies: Count = 4096  #: of the characteristic functions, drawn anew in each step
    scale: Weight = 300.0  #: of the distance
    psi: bool = False  #: learn the scales of the frequencies against the images, as in the paper; released without
    psi_lr: AdamRate = 0.01  #: AdamW learning rate of psi

    def for_task(self, task: Task) -> Self:
        """As it is: AdamW's rate does not follow the images per class."""
        return self

    def stages(self, unit: ExpertsUnit, last: int) -> Stages:
        """Weights between the first and the last."""
        from datastill.surrogates.stages import Stages

        return Stages(unit, (last,), law="interpolated", classify="final" if self.alpha else "none")

    def objective(self) -> StageMatch:
        """Characteristic functions and cross-entropy."""
        from datastill.objectives.stage_match import StageMatch

        return StageMatch("cf", self.alpha, frequencies=self.frequencies, scale=self.scale)

    def rule(self, task: Task) -> UpdateRule:
        """AdamW, as released."""
        from datastill.core.update import AdamW

        return AdamW(self.image_lr, weight_decay=0.0)

    def more(self) -> dict[str, Any]:
        """psi as a leaf that is maximized and not kept."""
        if not self.psi:
            return {}
        import torch

        from datastill.core.update import AdamW
        from datastill.objectives.stage_match import PER_SCALE, PSI

        count = -(-self.frequencies // PER_SCALE)
        rule = AdamW(self.psi_lr, weight_decay=0.0, maximize=True)
        return {"shared": {PSI: torch.zeros(count)}, "keep": (), "update": {PSI: rule}}
