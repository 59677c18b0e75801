"""Dataset Condensation via Efficient Synthetic-Data Parameterization (Kim et al., ICML 2022, arXiv:2205.14959).

L = sum_c || grad l(A_c(f(S_c))) - grad l(A_c(B_c)) ||, squared l2 or l1 over the convolutions' weights, summed,
where f cuts every stored image into factor x factor tiles and enlarges each to a whole image (multi-formation), on a
network that trains on real images between image updates.

- Needs: nothing but the real set and a network family.
- Cost: C * (3 * real_batch + 8 * min(128, ipc * factor^2)) + 3 * net_images network passes a step.
- Departs: the classes' momentum steps, one after the other in the released code, are taken at once in their exact
  joint form; starts are random real images, not the first of each class; between updates the network takes images
  that are drawn anew, not full batches that walk through a pass; batch norm is frozen in the match.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from datastill.core.ranges import Count, Momentum, Probability, Rate, RateOrAuto, Tiles
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from typing import Self

    from datastill.core.plan import Plan, Task


#: How much longer the pixels' steps are where `auto` cuts their number.
_HURRY = 5.0


@method("idc", paper="arXiv:2205.14959", family="gradient")
@dataclass(frozen=True, kw_only=True)
class IDC(Method):
    """Match weight gradients through multi-formation, on networks that train on real images."""

    steps: Count = 200_000  #: image updates of every class
    factor: Tiles = 2  #: each stored image is cut into factor x factor; 1 stores whole images (IDC-I)
    outer: Count = 100  #: image updates per network
    real_batch: Count = 64  #: real images per class and step
    synthetic_batch: Count = 128  #: most decoded images per class and step
    image_lr: RateOrAuto = 0.0  #: SGD learning rate of the pixels in [0, 1]; 0 is base_lr * ipc / 10 * (side / 32)^2
    base_lr: Rate = 5e-3  #: see image_lr: 5e-3 with mse, 1e-4 with l1 on MNIST and FashionMNIST
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels
    sequential: bool = True  #: momentum steps class after class, as released; false takes all classes at once
    distance: Literal["mse", "l1"] = "mse"  #: between gradients of a class
    net_images: Count = 2000  #: real images that the network trains on between two updates
    net_lr: Rate = 0.01  #: learning rate of the network, momentum 0.9
    cutmix: Probability = 0.5  #: probability of CutMix in the network's training
    augment: str = "auto"  #: operations of the siamese match, "none", or "auto": color, crop and cutout
    init: Literal["mix", "real", "noise"] = "mix"  #: start: every tile a real image ("mix"), whole ones, or noise
    engine: Literal["auto", "loop", "vmap", "joint"] = "auto"  #: how the gradients of all classes are computed

    def for_task(self, task: Task) -> Self:
        """The learning rate of the pixels, which follows images per class and image size."""
        side = max(task.real.shape[1:])
        side = side if side >= 28 else 32  # 28 is the smallest that was published; 8 x 8 would hardly move
        return replace(self, image_lr=self.image_lr or self.base_lr * task.ipc / 10 * (side / 32) ** 2)

    def build(self, task: Task) -> Plan:
        """Gradient match of decoded tiles on networks trained on real images."""
        from datastill.augment.dsa import Dsa
        from datastill.augment.strategies import composite_strategy
        from datastill.core.plan import Plan
        from datastill.core.update import SequentialSgd, Sgd
        from datastill.core.wrapped import Rated, Steady
        from datastill.decoders.multi_formation import bounded
        from datastill.objectives.gradient_match import GradientMatch
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassEpochs
        from datastill.surrogates.on_real import TrainedOnReal
        from datastill.training.hard import Schedule

        strategy = composite_strategy(self.augment, task.real.name, task.real.shape)
        # The network sees no cutout: CutMix takes its place.
        plain = "_".join(op for op in strategy.split("_") if op != "cutout") or "none"
        schedule = Schedule(
            1,
            lr=self.net_lr,
            batch=self.real_batch,
            augment=plain,
            augment_mode="composite",
            cutmix=0.0 if strategy == "none" else self.cutmix,
        )
        lr, momentum = self.image_lr, self.image_momentum
        rule: Rated = SequentialSgd(lr, momentum, rows=task.labels) if self.sequential else Sgd(lr, momentum)
        return Plan(
            init=make_init(self.init, factor=self.factor, pixels=True),
            decoder=bounded(self.factor, task.real.space, clamp_every=self.outer),
            objective=GradientMatch(
                distance=self.distance,
                layers="conv",
                engine=self.engine,
                synthetic_batch=self.synthetic_batch,
            ),
            surrogates=TrainedOnReal(task.network, outer=self.outer, images=self.net_images, schedule=schedule),
            sampler=ClassEpochs(self.real_batch),
            augment=None if strategy == "none" else Dsa(strategy, mode="composite"),
            update={"images": Steady(rule)},
            steps=self.steps,
            network=task.network,
        )

    def macs_per_step(self, task: Task) -> float:
        """Three passes per real image, eight per decoded one, three per image of the network's training."""
        real = sum(min(self.real_batch, int(n)) for n in task.real.counts)
        decoded = min(self.synthetic_batch, task.ipc * self.factor**2) * task.classes
        trained = min(self.net_images, len(task.real)) * (self.outer - 1) / max(1, self.outer)
        return task.network.macs * (3 * real + 8 * decoded + 3 * trained)

    def scaled(self, task: Task, seconds: float) -> Self:
        """Cheaper steps before fewer: smaller batches, shorter training, more networks; and longer pixel steps.

        A thousandth of the published number of steps does not get anywhere at the published learning rate.
        """
        cheap = replace(
            self,
            real_batch=min(self.real_batch, 32),
            net_images=min(self.net_images, 200),
            outer=min(self.outer, 10),
            image_lr=_HURRY * self.image_lr,
        )
        return self.within(cheap, task, seconds)
