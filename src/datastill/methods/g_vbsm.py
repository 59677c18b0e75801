"""G-VBSM: Generalized Various Backbone and Statistical Matching (Shao et al., CVPR 2024, arXiv:2311.17950).

L = CE(f_k(A(x)), y) + r sum_j m_j sum_i || mu_ji - target_ji || + kappa sum_c KL(softmax(e_c / 4) || softmax(e_c))
with f_k one of several networks trained on the real set, by turns, mu_ji the mean and variance of each channel that
layer j is given, and at convolutions of each patch, as moving averages whose gradient is that of the present statistic;
e_c are the eigenvalues of the Gram matrix of the images of a class. All networks label the set, each alike.

- Needs: several networks with batch norm, trained here (squeeze_passes) or brought (--teacher, --backbones).
- Cost: C * ipc * 3 network passes a step, on one network at a time; before that a pass over the real set for each.
- Departs: eigenvalues are divided by their mean: as released they are so large that the term is 0; moving averages
  begin at the first statistic and in each block; the number of real images is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datastill.core.ranges import Probability, Weight
from datastill.core.registry import method
from datastill.methods._backbones import Backbones

if TYPE_CHECKING:
    from datastill.augment.recovery_views import RecoveryViews
    from datastill.core.plan import Init, Task
    from datastill.objectives.layer_match import LayerMatch
    from datastill.surrogates.backbones import Backbone


@method("g-vbsm", paper="arXiv:2311.17950", family="decoupled")
@dataclass(frozen=True, kw_only=True)
class GVBSM(Backbones):
    """Recover images from the classes and all layers' statistics of several networks, which label them together."""

    init: str = "noise"  #: start from "noise", or from "real" images
    dropout: Probability = 0.4  #: with which a convolution's statistics are left out of a step; 0 on ImageNet-1K
    density: Weight = 1.0  #: kappa, weight of the densification, which spreads the images of a class
    density_scale: Literal["mean", "raw"] = "mean"  #: eigenvalues by their mean, or as released, where the term is 0

    combine: ClassVar[str] = "norm_balanced"
    paper_values: ClassVar[dict[str, Any]] = {"r_statistics": 0.01, "squeeze_passes": 50}

    def start(self, source: Backbone) -> Init:
        """Noise, as published."""
        from datastill.sampling.inits import make_init

        return make_init(self.init)

    def objective(self, task: Task, views: RecoveryViews, units: list[str]) -> LayerMatch:
        """Cross-entropy, statistics and densification, which takes several images of a class."""
        from datastill.objectives.layer_match import LayerMatch

        alone = task.ipc == 1 and self.density > 0
        return LayerMatch(
            views,
            units,
            self.r_statistics,
            decay=self.ema,
            ema_start=self.ema_start,
            dropout=self.dropout,
            first_layer=self.first_layer,
            density=0.0 if alone else self.density,
            density_scale=self.density_scale,
            remark="with one image per class there is nothing to spread: the densification is 0" if alone else "",
        )
