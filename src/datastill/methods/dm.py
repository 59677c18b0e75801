"""Dataset Condensation with Distribution Matching (Zhao and Bilen, WACV 2023, arXiv:2110.04181).

L = sum_c || mean_{x in B_c} f(A_c(x)) - mean_{s in S_c} f(A_c(s)) ||^2
with f the features (the input of the last linear layer) of a new random network every step and A_c one
augmentation per class and step, shared by both sides.

- Needs: nothing but the real set and a network family.
- Cost: C * (real_batch forward + 3 * ipc * factor^2) network passes a step; memory of one chunk of images.
- Departs: random draws are derived from the seed, not from the clock; the real side runs in chunks and
  the synthetic side in groups of classes, which changes no number where no layer couples samples; batch norm has the
  statistics of real images on both sides, as in DC, where the released code takes those of each side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from datastill.core.ranges import AnyRate, Count, Momentum, Tiles
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Decoder, Plan, Task


@method("dm", paper="arXiv:2110.04181", family="distribution")
@dataclass(frozen=True, kw_only=True)
class DM(Method):
    """Match class means of features under a fresh random network each step."""

    steps: Count = 20_000  #: image updates
    real_batch: Count = 256  #: real images per class and step
    image_lr: AnyRate = 1.0  #: SGD learning rate of the pixels; the paper takes 10 above 50 images per class
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels
    decay: Literal["none", "cosine"] = "none"  #: how the learning rate of the pixels falls over the steps
    factor: Tiles = 1  #: a stored image holds factor x factor smaller ones (multi-formation, arXiv:2205.14959)
    init: str = "real"  #: start from distinct "real" images, one for every tile, or from "noise"
    augment: str = "auto"  #: DSA strategy, "none", or "auto": all operations, no flip for digits
    clamp: bool = False  #: keep pixels inside the valid range after every step

    def build(self, task: Task) -> Plan:
        """Fresh networks, feature means, pixels or tiles of them."""
        from datastill.augment.strategies import make_augment
        from datastill.core.plan import Plan
        from datastill.core.update import Sgd, cosine
        from datastill.core.wrapped import Steady
        from datastill.decoders.multi_formation import MultiFormation
        from datastill.decoders.pixels import Pixels
        from datastill.objectives.feature_means import FeatureMeans
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassBatches
        from datastill.surrogates.fresh import Fresh

        decoder: Decoder = Pixels(clamp=self.clamp)
        init = self.init
        if self.factor != 1:
            pad = 0.5 if task.real.space.kind == "raw" else 0.0
            decoder = MultiFormation(self.factor, pad=pad, clamp="step" if self.clamp else "none")
            init = "mix" if init == "real" else init
        schedule = cosine if self.decay == "cosine" else None
        rule = Sgd(lr=self.image_lr, momentum=self.image_momentum, schedule=schedule)
        return Plan(
            init=make_init(init, self.factor),
            decoder=decoder,
            objective=FeatureMeans(),
            surrogates=Fresh(task.network, frozen=True),
            sampler=ClassBatches(self.real_batch),
            augment=make_augment(self.augment, task.real.name, task.real.shape),
            update={"images": Steady(rule)},
            steps=self.steps,
            network=task.network,
        )

    def macs_per_step(self, task: Task) -> float:
        """One pass per real image; forward and backward to the pixels, about three, per decoded one.

        Those that batch norm takes its statistics from come on top.
        """
        from datastill.training.frozen_norm import STATISTICS_IMAGES

        images = (self.real_batch, STATISTICS_IMAGES if task.network.couples_samples else 0)
        real = sum(min(most, int(n)) for most in images for n in task.real.counts)
        return task.network.macs * (real + 3 * len(task.labels) * self.factor**2)

    def scaled(self, task: Task, seconds: float) -> DM:
        """Fewer real images per step before fewer steps: at equal cost more, cheaper steps win by far.

        At most 3,000, after which accuracy hardly moves and pixels drift out of range.
        """
        return self.within(replace(self, real_batch=min(self.real_batch, 32)), task, seconds, most=3_000)
