"""CIM: tiles whose inner features are those of the real images that they were cut from (arXiv:2607.00916).

L_c = sum_j mean | xi(A_j x_j) - xi(A_j s_j) |
with s_j the enlarged tiles of the stored images of a class, x_j the real image that tile j was, A_j one augmentation of
both, and xi an inner layer of a network trained on the real set, which gives the labels when a network is trained. The
images begin as mosaics of the real ones of the lowest cross-entropy, as in RDED.

- Needs: a network trained here (squeeze_passes) or brought (--teacher); batch norm is not needed.
- Cost: C * candidates network passes, then 4 * C * ipc * factor^2 a step; classes are independent blocks.
- Departs: the distance is that of the code, the mean of absolute differences, and the paper's square an option; AdamW
  has no weight decay; the layer of an unknown network is the last one with maps of more than one pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from datastill.core.ranges import AdamRate, Count, Few, Share, Tiles
from datastill.core.registry import method
from datastill.methods._squeezed import Squeezed

if TYPE_CHECKING:
    from datastill.augment.dsa import Dsa
    from datastill.core.plan import Plan, Task
    from datastill.sampling.patches import Patches


@method("cim", paper="arXiv:2607.00916", family="decoupled")
@dataclass(frozen=True, kw_only=True)
class CIM(Squeezed):
    """Move mosaics of real images until each tile has the inner features of the image that it was."""

    steps: Count = 200  #: image updates of every class
    image_lr: AdamRate = 0.01  #: AdamW learning rate of the pixels
    factor: Tiles = 2  #: factor x factor tiles in an image
    candidates: Count = 300  #: real images of each class that are looked at
    crops: Few = 1  #: crops of each
    low_scale: Share = 1.0  #: smallest share of an image in a crop; 1 takes whole images
    layer: str = "auto"  #: whose output is matched, a module's name; auto is the last one with maps
    distance: Literal["l1", "l2"] = "l1"  #: mean of absolute differences, or of squares
    augment: str = "auto"  #: DSA strategy of each pair, "none", or "auto": crop, cutout, flip where one may

    paper_values: ClassVar[dict[str, Any]] = {"squeeze_passes": 200}
    matches_statistics: ClassVar[bool] = False

    def build(self, task: Task) -> Plan:
        """Mosaics as pixels, moved class by class."""
        from datastill.core.plan import ClassMajor, Plan
        from datastill.core.update import AdamW
        from datastill.decoders.pixels import Pixels
        from datastill.objectives.paired import PairedFeatures
        from datastill.surrogates.pretrained import Pretrained

        source = self.source(task)
        patches = self._patches(task)
        return Plan(
            init=patches,
            decoder=Pixels(),
            objective=PairedFeatures(patches, self.layer, self.distance),
            surrogates=Pretrained(source),
            augment=self._augment(task),
            update={"images": AdamW(self.image_lr, weight_decay=0.0)},
            partition=ClassMajor(1),
            steps=self.steps,
            prepare=(source,),
            network=task.network,
            student=lambda shared: {"labels": "teacher", "patches": self.factor},
            companions=lambda prepared: {"teacher": source.teacher(task, prepared[source.name])},
        )

    def _patches(self, task: Task) -> Patches:
        from datastill.sampling.patches import Patches

        return Patches(self.source(task), self.factor, self.candidates, self.crops, self.low_scale, again=True)

    def _augment(self, task: Task) -> Dsa | None:
        from datastill.augment.dsa import Dsa, without_flip
        from datastill.augment.strategies import strategy_for

        if self.augment != "auto":
            return None if self.augment == "none" else Dsa(self.augment)
        fitting = strategy_for(task.real.name, task.real.shape)
        if fitting == "none":
            return None
        return Dsa("crop_cutout_flip" if "flip" in fitting else without_flip("crop_cutout_flip"))

    def macs_per_step(self, task: Task) -> float:
        """A pass for each anchor, and about three for each tile."""
        return 4.0 * self.factor**2 * task.network.macs * len(task.labels)

    def selection_macs(self, task: Task) -> float:
        """A forward pass for every crop."""
        images = sum(min(self.candidates, int(n)) for n in task.real.counts)
        return self.crops * images * task.network.macs

    def scaled(self, task: Task, seconds: float) -> Self:
        """Half of the time for the squeeze and the choice, half for the steps."""
        cheap = self.at_pace(task, seconds, 1.0, 1.0)
        steps = self.affordable(task, seconds - cheap.nominal_preparation(task))
        return replace(cheap, steps=max(20, min(self.steps, steps)))
