"""Improved Distribution Matching for Dataset Condensation (Zhao et al., CVPR 2023, arXiv:2307.09742).

L = sum_c || mean_{x in B_c} f(A_c(x)) - mean_{s in T(S_c)} f(A_c(s)) ||^2 + w a mean_{s in T(S_c)} CE(phi(A_c(s)), c)
where T cuts every stored image into factor x factor tiles and enlarges each to a whole image, and phi, with features
f, is a network out of a pool of all ages that train on real images; a is its accuracy in percent.

- Needs: nothing but the real set and a network family; memory for a pool of networks.
- Cost: C * (real_batch forward + 3 * ipc * factor^2) + 3 * trained * net_steps * net_batch network passes a step.
- Departs: the accuracy of a network is that of its last training, not a mean over all of the past; the classes'
  momentum steps, one after the other in the released code, are taken at once in their exact joint form; the last set,
  not the best by test accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le

from datastill.core.ranges import Amount, AnyRate, Count, Few, Momentum, Rate, Tiles, Weight
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Decoder, Plan, Task
    from datastill.core.wrapped import Rated


@method("idm", paper="arXiv:2307.09742", family="distribution")
@dataclass(frozen=True, kw_only=True)
class IDM(Method):
    """Match class means of features, and labels, on a pool of networks that train on real images."""

    steps: Count = 20_000  #: image updates of every class
    factor: Tiles = 2  #: each stored image is cut into factor x factor; 1 stores whole images
    real_batch: Count = 256  #: real images per class and step; the paper takes 5000 at 1 image per class
    image_lr: AnyRate = 0.2  #: SGD learning rate of the pixels
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels
    sequential: bool = True  #: momentum steps class after class, as released; false takes all classes at once
    ce_weight: Weight = 0.5  #: w, of the cross-entropy of synthetic images, times the network's accuracy in percent
    pool: Few = 100  #: most networks at any time; a new one then takes the place of the oldest
    pool_start: Annotated[int, Ge(0), Le(10_000)] = 3  #: networks before the first step
    interval: Count = 30  #: steps between two new networks; the paper takes 5 at 1 image per class
    trained: Amount = 2  #: networks of the pool that train between two steps
    net_steps: Count = 10  #: updates of each of them
    net_batch: Count = 256  #: real images of each of these
    net_lr: Rate = 0.01  #: learning rate of the networks, momentum 0.9
    augment: str = "auto"  #: DSA strategy, "none", or "auto": all operations, no flip for digits
    init: Literal["mix", "real", "noise"] = "mix"  #: start: every tile a real image ("mix"), whole ones, or noise

    def build(self, task: Task) -> Plan:
        """Feature means and labels of decoded tiles on a pool of networks."""
        from datastill.augment.strategies import make_augment
        from datastill.core.plan import Plan
        from datastill.core.update import SequentialSgd, Sgd
        from datastill.core.wrapped import Steady
        from datastill.decoders.multi_formation import MultiFormation
        from datastill.decoders.pixels import Pixels
        from datastill.objectives.labeled_means import LabeledFeatureMeans
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassBatches
        from datastill.surrogates.pool import Pool
        from datastill.training.hard import Schedule

        pad = 0.5 if task.real.space.kind == "raw" else 0.0
        decoder: Decoder = Pixels() if self.factor == 1 else MultiFormation(self.factor, pad=pad)
        lr, momentum = self.image_lr, self.image_momentum
        rule: Rated = SequentialSgd(lr, momentum, rows=task.labels) if self.sequential else Sgd(lr, momentum)
        return Plan(
            init=make_init(self.init, self.factor),
            decoder=decoder,
            objective=LabeledFeatureMeans(self.ce_weight),
            surrogates=Pool(
                task.network,
                start=self.pool_start,
                most=self.pool,
                interval=self.interval,
                trained=self.trained,
                updates=self.net_steps,
                schedule=Schedule(1, lr=self.net_lr, batch=self.net_batch),
            ),
            sampler=ClassBatches(self.real_batch),
            augment=make_augment(self.augment, task.real.name, task.real.shape),
            update={"images": Steady(rule)},
            steps=self.steps,
            network=task.network,
        )

    def macs_per_step(self, task: Task) -> float:
        """One pass per real image, three per decoded one and per image of the networks' training."""
        real = sum(min(self.real_batch, int(n)) for n in task.real.counts)
        decoded = len(task.labels) * self.factor**2
        trained = self.trained * self.net_steps * min(self.net_batch, len(task.real))
        return task.network.macs * (real + 3 * decoded + 3 * trained)

    def scaled(self, task: Task, seconds: float) -> IDM:
        """Smaller batches and shorter training of fewer networks before fewer steps."""
        cheap = replace(
            self,
            real_batch=min(self.real_batch, 32),
            pool=min(self.pool, 10),
            trained=min(self.trained, 1),
            net_steps=min(self.net_steps, 2),
            net_batch=min(self.net_batch, 64),
        )
        return self.within(cheap, task, seconds)
