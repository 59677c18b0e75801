"""EDC: Elucidating the Design Space of Dataset Condensation (Shao et al., NeurIPS 2024, arXiv:2404.13733).

L = CE(f_k(A(x)), y) + r sum_j m_j sum_i (|| mu_ji - target_ji || + || mu_ji - mean_{y in block} target_ji(y) ||) / 2
with the networks f_k and statistics mu_ji of G-VBSM, target_ji(y) the statistics of the real images of class y, and
images that start as the patches that RDED would choose. The mean of all networks' logits labels the set.

- Needs: several networks with batch norm, trained here (squeeze_passes) or brought (--teacher, --backbones).
- Cost: as G-VBSM, and the choice of the start; a quarter of the steps are enough, as its authors tell.
- Departs: the variance of a class is that of all its images together, where the code leaves out what lies between
  images; moving averages begin at the first statistic and in each block; the flatness term is there and off, as in all
  released scripts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datastill.core.ranges import Count, Pixels, Share, Tiles, Weight
from datastill.core.registry import method
from datastill.methods._backbones import Backbones

if TYPE_CHECKING:
    from datastill.augment.recovery_views import RecoveryViews
    from datastill.core.plan import Init, Task
    from datastill.objectives.layer_match import LayerMatch
    from datastill.surrogates.backbones import Backbone
    from datastill.surrogates.layer_targets import LayerTargets


@method("edc", paper="arXiv:2404.13733", family="decoupled")
@dataclass(frozen=True, kw_only=True)
class EDC(Backbones):
    """Move patches of real images until several networks see the statistics of their classes."""

    steps: Count = 1_000  #: image updates of every block, the networks by turns
    init: str = "patches"  #: start from "patches" of real images (RDED), from "real" images or from "noise"
    factor: Tiles = 1  #: factor x factor patches in an image; 2 at 224 pixels
    class_variance: Literal["total", "within"] = "total"  #: of all images of a class, or within each, as released
    flatness: Weight = 0.0  #: weight of the divergence from the outputs for a moving average of the images
    crop: bool = True  #: random resized crops in recovery
    low_scale: Share = 0.5  #: smallest share of the image in a crop
    jitter: Pixels = 0  #: circular shift by up to so many pixels

    categories: ClassVar[bool] = True
    paper_values: ClassVar[dict[str, Any]] = {"r_statistics": 0.01, "squeeze_passes": 50}

    def start(self, source: Backbone) -> Init:
        """The patches that the first network is surest of."""
        from datastill.sampling.inits import make_init
        from datastill.sampling.patches import Patches

        return Patches(source, self.factor, again=True) if self.init == "patches" else make_init(self.init)

    def trained_on(self) -> dict[str, Any]:
        """Patches change places where there are several."""
        return {"patches": self.factor if self.init == "patches" else 1}

    def targets(self, source: Backbone) -> LayerTargets:
        """With those of each class."""
        return replace(super().targets(source), total=self.class_variance == "total")

    def objective(self, task: Task, views: RecoveryViews, units: list[str]) -> LayerMatch:
        """Cross-entropy, and statistics half of all classes and half of those in the block."""
        from datastill.objectives.layer_match import LayerMatch

        return LayerMatch(
            views,
            units,
            self.r_statistics,
            category=0.5,
            decay=self.ema,
            ema_start=self.ema_start,
            first_layer=self.first_layer,
            flatness=self.flatness,
        )

    def selection_macs(self, task: Task) -> float:
        """The measured images, and a forward pass for every crop of the start."""
        if self.init != "patches":
            return super().selection_macs(task)
        from datastill.sampling.patches import Patches

        images = sum(min(Patches.candidates, int(n)) for n in task.real.counts)
        return super().selection_macs(task) + Patches.crops * images * task.network.macs
