"""DataDAM: Efficient Dataset Distillation with Attention Matching (Sajedi et al., ICCV 2023, arXiv:2310.00093).

L = s sum_c ( sum_l || mean_{x in B_c} z_l(A_c(x)) - mean_{s in S_c} z_l(A_c(s)) ||^2
              + lambda || mean_{x in B_c} f(A_c(x)) - mean_{s in S_c} f(A_c(s)) ||^2 ),
z_l = a / |a|_2,  a = sum_channels |F_l|^p,
over the activation maps F_l of a new random network every step, all but the last, and its features f.

- Needs: nothing but the real set and a network family.
- Cost: C * (real_batch forward + 3 * ipc) network passes a step, as DM; memory of one chunk of images.
- Departs: instance norm, p = 4 and the last set, where the released code takes batch norm, p = 1 and the best of many
  sets by test accuracy; a map of zeros has no direction and matches nothing, where the released code divides by zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Le

from datastill.core.ranges import AnyRate, Count, Momentum, Weight
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


@method("datadam", paper="arXiv:2310.00093", family="distribution")
@dataclass(frozen=True, kw_only=True)
class DataDAM(Method):
    """Match where the layers of fresh random networks are active, and the class means of their features."""

    compiles: ClassVar[bool] = False

    steps: Count = 8_000  #: image updates
    real_batch: Count = 128  #: real images per class and step; the released code takes 64
    image_lr: AnyRate = 1.0  #: SGD learning rate of the pixels; the paper takes 10 above 50 images per class
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels
    power: Annotated[float, Ge(1), Le(64)] = 4.0  #: p of the attention; the released code takes 1
    scale: Weight = 100.0  #: s, of the whole loss
    mean_weight: Weight = 0.01  #: lambda, of the features' class means; 0.02 for images of 64 pixels and more
    init: str = "real"  #: start from distinct "real" images or from "noise"
    augment: str = "auto"  #: DSA strategy, "none", or "auto": all operations, no flip for digits

    def build(self, task: Task) -> Plan:
        """Fresh networks, attention of all spatial layers but the last activation, feature means, pixels."""
        from functools import partial

        from datastill.augment.strategies import make_augment
        from datastill.core.plan import Plan
        from datastill.core.update import Sgd
        from datastill.core.wrapped import Steady
        from datastill.decoders.pixels import Pixels
        from datastill.models.activations import activations
        from datastill.objectives.layer_means import LayerMeans, spatial_attention
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassBatches
        from datastill.surrogates.fresh import Fresh

        layers = [layer.name for layer in activations(task.network)[:-1] if layer.spatial]
        return Plan(
            init=make_init(self.init),
            decoder=Pixels(),
            objective=LayerMeans(
                dict.fromkeys(layers, self.scale),
                features=self.scale * self.mean_weight,
                view=partial(spatial_attention, power=self.power),
            ),
            surrogates=Fresh(task.network),
            sampler=ClassBatches(self.real_batch),
            augment=make_augment(self.augment, task.real.name, task.real.shape),
            update={"images": Steady(Sgd(lr=self.image_lr, momentum=self.image_momentum))},
            steps=self.steps,
            network=task.network,
        )

    def macs_per_step(self, task: Task) -> float:
        """One pass per real image; forward and backward to the pixels, about three, per synthetic one."""
        real = sum(min(self.real_batch, int(n)) for n in task.real.counts)
        return task.network.macs * (real + 3 * len(task.labels))

    def scaled(self, task: Task, seconds: float) -> DataDAM:
        """Fewer real images per step before fewer steps, as in DM."""
        return self.within(replace(self, real_batch=min(self.real_batch, 32)), task, seconds, most=3_000)
