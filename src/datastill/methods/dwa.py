"""Directed Weight Adjustment (Du et al., NeurIPS 2024, arXiv:2409.17612).

L = CE(f_{theta+delta}(A(x)), y) + r_bn (M + lambda_var V), M and V the distances of means and of variances as in SRe2L,
with delta from K steps up the cross-entropy of the block's own start, of length radius in all, and lambda_var > 1:
the variance term pushes the images of a block apart, the perturbation gives every block a teacher of its own.

- Needs: what SRe2L needs.
- Cost: as SRe2L, and K forward and backward passes of a block at its start (about 1 %).
- Departs: every block starts from the teacher's own weights, where the released code lets perturbations add up over the
  blocks of an image index (`accumulate`); weight gradients are taken only for the perturbation; statistics are those of
  the perturbed network, as in the code, or of the teacher (bn_on = "base"), as in the formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from datastill.core.ranges import Amount, Weight
from datastill.core.registry import method
from datastill.methods.sre2l import SRe2L

if TYPE_CHECKING:
    from datastill.augment.recovery_views import RecoveryViews
    from datastill.core.plan import Surrogates
    from datastill.objectives.recovery import Recovery
    from datastill.surrogates.pretrained import Pretrained


@method("dwa", paper="arXiv:2409.17612", family="decoupled")
@dataclass(frozen=True, kw_only=True)
class DWA(SRe2L):
    """SRe2L from real images, variances before means, and a teacher that is moved a little for each block."""

    init: str = "real"  #: start from "real" images, from "noise", or from "patches" of real ones (RDED)
    variance_weight: Weight = 11.0  #: of the variances, where means have 1; 2 on ImageNet-1K
    ascent_steps: Amount = 12  #: K, steps up the loss of the block's start; 0 leaves the teacher as it is
    radius: Weight = 0.015  #: length of the way, over all weights
    normalize: bool = True  #: steps of equal length; off takes the plain gradient
    batch: Literal["init", "real"] = "init"  #: climb on the block's own start, or on real images of its classes
    bn_on: Literal["perturbed", "base"] = "perturbed"  #: whose statistics are matched
    accumulate: bool = False  #: begin where the block before, of other classes, ended; as released

    def objective(self, views: RecoveryViews, pretrained: Pretrained) -> Recovery:
        """Cross-entropy and statistics, variances weighted up."""
        from datastill.objectives.recovery import Recovery

        base = pretrained if self.bn_on == "base" else None
        return Recovery(
            views, self.r_bn, variance_weight=self.variance_weight, first_layer=self.first_layer, statistics_of=base
        )

    def surrogates(self, views: RecoveryViews, pretrained: Pretrained) -> Surrogates:
        """A perturbed teacher for every block."""
        from datastill.surrogates.perturbed import Perturbed

        return Perturbed(
            pretrained,
            views,
            self.ascent_steps,
            self.radius,
            self.normalize,
            self.batch,
            accumulate=self.accumulate,
        )
