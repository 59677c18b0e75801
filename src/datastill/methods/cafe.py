"""CAFE: Learning to Condense Dataset by Aligning Features (Wang et al., CVPR 2022, arXiv:2203.01531).

L = sum_c sum_l w_l || mean_{x in B_c} a_l(x) - mean_{s in S_c} a_l(s) ||^2
    + beta sum_{x in B} CE(<f(x), mean f(S_j)>_j, y(x))
with a_l the activation maps (the last has weight 1, those before 0.1), the features f among them with weight 2, on a
network that trains on the synthetic set between image updates, for as long as its accuracy on real images moves.

- Needs: nothing but the real set and a network family.
- Cost: C * (real_batch forward + 4 * ipc) network passes a step, and C * (query + 3 * ipc) for each pass of training.
- Departs: training between two matches has a cap; its accuracies are fresh ones, not running sums; real images add no
  cross-entropy of their own, which does not depend on the synthetic set; a step is an image update, not a network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datastill.core.ranges import AnyRate, Count, Momentum, Rate, Weight
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


#: Passes over the synthetic set between two updates, over a run.
_TYPICAL_PASSES = 5


def halved(progress: float) -> float:
    """Of the learning rate: halved at 1200, 1600 and 1800 of 2000."""
    return float(0.5 ** sum(progress >= after for after in (0.6, 0.8, 0.9)))


@method("cafe", paper="arXiv:2203.01531", family="distribution")
@dataclass(frozen=True, kw_only=True)
class CAFE(Method):
    """Match class means of all layers, on networks that train on the synthetic set while they learn from it."""

    steps: Count = 20_000  #: image updates; the paper's 2,000 networks, of which each has ten or more
    inner: Count = 100  #: most passes over the synthetic set between two updates
    query: Count = 128  #: real images per class of which the accuracy of the network is taken
    real_batch: Count = 256  #: real images per class and step
    image_lr: AnyRate = 0.1  #: SGD learning rate of the pixels, halved after 60, 80 and 90 % of the steps
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels
    net_lr: Rate = 0.01  #: learning rate of the network, plain SGD
    discrimination: Weight = 0.01  #: beta, of the cross-entropy of real features against synthetic class means
    init: str = "noise"  #: start from "noise" or from distinct "real" images
    augment: str = "none"  #: DSA strategy, "none", or "auto": all operations, no flip for digits (CAFE+DSA)

    def build(self, task: Task) -> Plan:
        """Class means of the layers on networks that train on the synthetic set while they move."""
        from datastill.augment.strategies import make_augment
        from datastill.core.plan import Plan
        from datastill.core.update import Sgd
        from datastill.core.wrapped import Steady
        from datastill.decoders.pixels import Pixels
        from datastill.models.activations import activations
        from datastill.objectives.layer_means import LayerMeans
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassBatches
        from datastill.surrogates.adaptive import AdaptivelyTrained

        augment = make_augment(self.augment, task.real.name, task.real.shape)
        names = [layer.name for layer in activations(task.network)]
        return Plan(
            init=make_init(self.init),
            decoder=Pixels(),
            objective=LayerMeans(
                {**dict.fromkeys(names, 0.1), **dict.fromkeys(names[-1:], 1.0)},
                features=2.0,
                discrimination=self.discrimination,
            ),
            surrogates=AdaptivelyTrained(
                task.network,
                cap=self.inner,
                query=self.query,
                lr=self.net_lr,
                augment="none" if augment is None else augment.strategy,
            ),
            sampler=ClassBatches(self.real_batch),
            augment=augment,
            update={"images": Steady(Sgd(self.image_lr, self.image_momentum, schedule=halved))},
            steps=self.steps,
            network=task.network,
        )

    def macs_per_step(self, task: Task) -> float:
        """One pass per real image, four per synthetic one, and a typical number of training passes with queries."""
        real, query = (sum(min(n, int(count)) for count in task.real.counts) for n in (self.real_batch, self.query))
        synthetic = len(task.labels)
        trained = min(self.inner, _TYPICAL_PASSES)
        return task.network.macs * (real + 4 * synthetic + query + trained * (query + 3 * synthetic))

    def scaled(self, task: Task, seconds: float) -> CAFE:
        """Fewer real images per step and query, and shorter training, before fewer steps."""
        cheap = replace(
            self,
            real_batch=min(self.real_batch, 32),
            query=min(self.query, 16),
            inner=min(self.inner, 5),
        )
        return self.within(cheap, task, seconds)
