"""Dataset Condensation with Gradient Matching (Zhao, Mopuri and Bilen, ICLR 2021, arXiv:2006.05929).

L = sum_c D(g_S(c), g_T(c)),  D(a, b) = sum_layers sum_rows ( 1 - <a_r, b_r> / (|a_r| |b_r|) )
with g_S(c) and g_T(c) the weight gradients of the mean cross-entropy of the synthetic and of a real batch of class c,
on a network that is trained on the synthetic set between image updates.

- Needs: nothing but the real set and a network family.
- Cost: C * (3 * real_batch + 8 * ipc) network passes a step, and 3 * inner * C * ipc for the training in between.
- Departs: rows of zero gradient have no gradient of their own (the published additive epsilon damps small rows:
  `parity=True`); batch norm is frozen at exact statistics; `outer * trajectories` updates, not one trajectory more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from datastill.core.ranges import Amount, AnyRate, Count, Momentum, Rate
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from typing import Self

    from datastill.core.plan import Plan, Task

#: (outer, inner) of the paper by images per class.
_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
_TRAJECTORIES = 1_000
#: RMS of the first steps of the pixels from which on the rate is another network's. The published rate makes steps of
#: 0.005 to 0.2 on ConvNets; of 0.31, on a ResNet-18, sixty steps took FashionMNIST from 48 to 33 %, of 0.01 to 51.
_TOO_LARGE = 0.25


def loops(ipc: int) -> tuple[int, int]:
    """Matches per network, and passes over the synthetic set between two of them.

    The paper gives them for 1, 10, 20, 30, 40 and 50 images per class; its authors advise (50, 10) for more, and
    (100, 2) at 100. Between those the product is held near 500.
    """
    if ipc in _LOOPS:
        return _LOOPS[ipc]
    if ipc > 50:
        return (100, 2) if ipc >= 100 else (50, 10)
    return ipc, 50 if ipc < 10 else max(1, round(500 / ipc))


@method("dc", paper="arXiv:2006.05929", family="gradient")
@dataclass(frozen=True, kw_only=True)
class DC(Method):
    """Match the weight gradients of each class on networks that train on the synthetic set."""

    steps: Amount = 0  #: image updates; 0 is the paper's 1,000 networks of `outer` updates each
    outer: Amount = 0  #: image updates per network; 0 follows from the images per class as in the paper
    inner: Amount = 0  #: passes over the synthetic set between two updates; 0 follows from the images per class
    real_batch: Count = 256  #: real images per class and step
    image_lr: AnyRate = 0.1  #: SGD learning rate of the pixels; 0.01 where the network is an MLP
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels
    net_lr: Rate = 0.01  #: learning rate of the network, plain SGD
    init: str = "noise"  #: start from "noise" or from distinct "real" images
    augment: str = "none"  #: DSA strategy, "none", or "auto": all operations, no flip for digits
    distance: Literal["row-cosine", "cos", "mse", "l1"] = "row-cosine"  #: between gradients of a class
    parity: bool = False  #: the published row cosine, whose epsilon damps small gradients
    engine: Literal["auto", "loop", "vmap", "joint"] = "auto"  #: how the gradients of all classes are computed

    def for_task(self, task: Task) -> Self:
        """Loops from the images per class."""
        outer, inner = loops(task.ipc)
        filled = replace(self, outer=self.outer or outer, inner=self.inner or inner)
        return replace(filled, steps=self.steps or _TRAJECTORIES * filled.outer)

    def build(self, task: Task) -> Plan:
        """Gradient match on networks trained on the synthetic set."""
        from datastill.augment.strategies import make_augment
        from datastill.core.plan import Plan
        from datastill.core.update import Sgd
        from datastill.core.wrapped import Steady
        from datastill.decoders.pixels import Pixels
        from datastill.objectives.gradient_match import GradientMatch
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassBatches
        from datastill.surrogates.on_synthetic import TrainedOnSynthetic

        augment = make_augment(self.augment, task.real.name, task.real.shape)
        surrogates = TrainedOnSynthetic(
            task.network,
            outer=self.outer,
            epochs=self.inner,
            lr=self.net_lr,
            augment="none" if augment is None else augment.strategy,
        )
        return Plan(
            init=make_init(self.init),
            decoder=Pixels(),
            objective=GradientMatch(distance=self.distance, parity=self.parity, engine=self.engine),
            surrogates=surrogates,
            sampler=ClassBatches(self.real_batch),
            augment=augment,
            update={"images": Steady(Sgd(self.image_lr, self.image_momentum), most=_TOO_LARGE)},
            steps=self.steps,
            network=task.network,
        )

    def macs_per_step(self, task: Task) -> float:
        """Forward and weight gradient of real images are three passes, the double backward of synthetic ones eight."""
        real = sum(min(self.real_batch, int(n)) for n in task.real.counts)
        synthetic = len(task.labels)
        trained = 3 * self.inner * synthetic * (self.outer - 1) / max(1, self.outer)
        return task.network.macs * (3 * real + 8 * synthetic + trained)

    def scaled(self, task: Task, seconds: float) -> Self:
        """Fewer real images per step and shorter inner loops before fewer steps."""
        cheap = replace(self, real_batch=min(self.real_batch, 32), inner=min(self.inner, 5))
        return self.within(cheap, task, seconds)
