"""Squeeze, Recover and Relabel (Yin, Xing and Shen, NeurIPS 2023, arXiv:2306.13092).

L = CE(f(A(x)), y) + r_bn sum_l m_l (|| mu_l - RM_l || + || v_l - RV_l ||)
with f a network trained on the real set (squeeze), mu_l, v_l the statistics of a block as batch-norm layer l is given
it, RM_l, RV_l the layer's running ones, and A a view of the block. When a network is trained, f labels (relabel).

- Needs: a network with batch norm, trained here (squeeze_passes) or brought (--teacher).
- Cost: C * ipc * 3 network passes a step, in blocks that are independent; no real images after the squeeze.
- Departs: images are kept as numbers, not as 8-bit files; the teacher never leaves evaluation mode in recovery and no
  hook stays on it; the terms on pixels (l2, tv), whose weights every published script sets to 0, are there and off;
  r_bn is found for the network at hand, and 0.01, found for a ResNet-18, is `--recipe paper`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from datastill.core.ranges import AdamRate, Count, Pixels, Share, Weight
from datastill.core.registry import method
from datastill.methods._squeezed import Squeezed

if TYPE_CHECKING:
    from datastill.augment.recovery_views import RecoveryViews
    from datastill.core.plan import Init, Plan, Surrogates, Task
    from datastill.objectives.recovery import Recovery
    from datastill.surrogates.pretrained import Pretrained
    from datastill.surrogates.teachers import TeacherSource


@method("sre2l", paper="arXiv:2306.13092", family="decoupled")
@dataclass(frozen=True, kw_only=True)
class SRe2L(Squeezed):
    """Recover images from a trained network's classes and batch-norm statistics; it labels them too."""

    steps: Count = 1_000  #: image updates of every block
    image_lr: AdamRate = 0.25  #: Adam's learning rate of the pixels, which falls to 0 along a cosine
    r_bn: Weight | Literal["auto"] = "auto"  #: weight of the statistics; auto finds one for the network
    first_layer: Weight = 10.0  #: weight of the first batch-norm layer; the others have 1
    block_classes: Count = 100  #: most classes in a block
    block_group: Count = 1  #: images of a class in a block; more make statistics of few classes mean something
    crop: bool = False  #: random resized crops and flips in recovery, as published from 64 pixels up
    low_scale: Share = 0.08  #: smallest share of the image in a crop
    jitter: Pixels = 4  #: circular shift by up to so many pixels; 32 at 224 pixels
    per_sample: bool = False  #: draw crops and shifts for every image; the published loop draws once a block
    init: str = "noise"  #: start from "noise", from "real" images, or from "patches" of real ones (RDED)
    #: end as 8-bit pixels, rounded or cut off (floor, as released), so that labels are those of what a file keeps
    quantize: Literal["none", "round", "floor"] = "none"

    paper_values: ClassVar[dict[str, Any]] = {"r_bn": 0.01, "squeeze_passes": 200}

    def build(self, task: Task) -> Plan:
        """A teacher, its statistics, independent blocks of pixels kept inside the valid range."""
        from datastill.core.plan import Plan
        from datastill.core.update import Adam, cosine
        from datastill.core.wrapped import Quantized
        from datastill.decoders.pixels import Pixels
        from datastill.sampling.partitions import IpcMajor
        from datastill.surrogates.pretrained import Pretrained

        source = self.source(task)
        pretrained, views = Pretrained(source), self.views()
        adam = Adam(lr=self.image_lr, betas=(0.5, 0.9), schedule=cosine)
        return Plan(
            init=self.start(source),
            decoder=Pixels(clamp=True),
            objective=self.objective(views, pretrained),
            surrogates=self.surrogates(views, pretrained),
            update={"images": Quantized(adam, task.real.space, self.quantize)},
            partition=IpcMajor(self.block_classes, self.block_group),
            steps=self.steps,
            prepare=(source,),
            network=task.network,
            student=lambda shared: {"labels": "teacher"},
            companions=lambda prepared: {"teacher": source.teacher(task, prepared[source.name])},
        )

    def start(self, source: TeacherSource) -> Init:
        """Where the images start; "patches" are those that RDED would choose."""
        from datastill.sampling.inits import make_init
        from datastill.sampling.patches import Patches

        return Patches(source) if self.init == "patches" else make_init(self.init)

    def views(self) -> RecoveryViews:
        """How a block is seen at a step."""
        from datastill.augment.recovery_views import EasyToHard, RecoveryViews

        crop = EasyToHard(low=self.low_scale, milestone=0.0) if self.crop else None
        return RecoveryViews(crop, self.crop, self.jitter, per_sample=self.per_sample)

    def objective(self, views: RecoveryViews, pretrained: Pretrained) -> Recovery:
        """Cross-entropy and statistics."""
        from datastill.objectives.recovery import Recovery

        return Recovery(views, self.r_bn, first_layer=self.first_layer)

    def surrogates(self, views: RecoveryViews, pretrained: Pretrained) -> Surrogates:
        """The teacher itself."""
        return pretrained

    def macs_per_step(self, task: Task) -> float:
        """Forward and backward to the pixels, of all blocks: about three passes an image."""
        return 3.0 * task.network.macs * len(task.labels)

    def selection_macs(self, task: Task) -> float:
        """Of a start from patches."""
        if self.init != "patches":
            return 0.0
        from datastill.sampling.patches import Patches

        images = sum(min(Patches.candidates, int(n)) for n in task.real.counts)
        return Patches.crops * images * task.network.macs

    def scaled(self, task: Task, seconds: float) -> Self:
        """Half of the time for the squeeze, half for the recovery; a weight of the statistics for so few steps.

        A published weight is for one network and thousands of steps.
        """
        cheap = replace(self.at_pace(task, seconds, 1.0, 1.0), r_bn="auto")
        steps = self.affordable(task, seconds - cheap.nominal_preparation(task))
        return replace(cheap, steps=max(20, min(self.steps, steps)))
