"""Neural Feature Regression with Pooling (FRePo; Zhou, Nezhadarya and Ba, NeurIPS 2022, arXiv:2206.00719).

L = mean_t 1/2 || y_t - F_t F_s' (F_s F_s' + lam tr(F_s F_s')/n I)^(-1) y_s ||^2 - mean_s min(y_s(1) - y_s(2), 1/C)
with F the features of a network out of a pool that trains on the synthetic set, s its images and learned labels, and t
a batch of real images; the gradient goes through F_s alone.

- Needs: nothing but the real set and a network family; memory for a pool of networks.
- Cost: C * real_batch forward + 3 * C * ipc (6 with mirrored copies) for the match, 3 * C * ipc for the pool, a step.
- Departs: batches are balanced over classes; the usual network is that of the library, not one whose width doubles; no
  test image is read, where the released code looks at its curves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from datastill.core.ranges import AdamRate, Count, Few, Rate
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task

#: The rates of the paper are those of half a million steps; what a shorter run takes, where none is given.
_SHORT, _SHORT_RATE = 50_000, 5e-3
#: Most synthetic images of which mirrored copies join the support.
_FLIPPED = 500


@method("frepo", paper="arXiv:2206.00719", family="kernel")
@dataclass(frozen=True, kw_only=True)
class FRePo(Method):
    """Images and labels from which features of networks that they trained predict real labels."""

    compiles: ClassVar[bool] = False

    steps: Count = 500_000  #: image updates
    ridge: Rate = 1e-6  #: lam, in units of the mean diagonal of the kernel
    real_batch: Count = 100  #: real images per class and step; the paper takes 1024 of all classes together
    image_lr: AdamRate = 3e-4  #: LAMB's learning rate of the pixels, which falls to a tenth
    label_lr: AdamRate = 3e-4  #: LAMB's learning rate of the labels, which falls to a tenth
    target_labels: Literal["learned", "fixed"] = "learned"  #: learned with the images, or the classes
    margin: bool = True  #: whether labels are to tell two classes apart
    mirror: Literal["auto", "on", "off"] = "auto"  #: mirrored copies in the support; auto as the paper: not of many
    pool: Few = 10  #: networks
    horizon: Count = 100  #: updates after which a network is replaced
    net_lr: AdamRate = 3e-4  #: Adam's learning rate of the networks
    net_batch: Count = 1_000  #: synthetic images of their updates at most
    init: Literal["real", "noise"] = "real"  #: start from distinct real images or from noise

    def build(self, task: Task) -> Plan:
        """A regression on features of a pool of networks."""
        from datastill.core.lamb import Lamb
        from datastill.core.plan import HardLabels, Labels, Plan, UpdateRule
        from datastill.core.update import cosine
        from datastill.decoders.pixels import Pixels
        from datastill.labels.learned import LEAF, Learned
        from datastill.objectives.kernel_ridge import KernelRidge
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassBatches
        from datastill.surrogates.staggered import Staggered

        def falling(progress: float) -> float:
            return 0.1 + 0.9 * cosine(progress)

        update: dict[str, UpdateRule] = {"images": Lamb(self.image_lr, schedule=falling)}
        labels: Labels = HardLabels()
        if self.target_labels == "learned":
            labels = Learned(scale=(10 / task.classes) ** 0.5)
            update[LEAF] = Lamb(self.label_lr, schedule=falling)
        return Plan(
            init=make_init(self.init),
            decoder=Pixels(),
            objective=KernelRidge(ridge=self.ridge, flip=self._mirrors(task), margin=self.margin),
            surrogates=Staggered(
                task.network, size=self.pool, horizon=self.horizon, lr=self.net_lr, batch=self.net_batch
            ),
            sampler=ClassBatches(self.real_batch),
            labels=labels,
            update=update,
            steps=self.steps,
            network=task.network,
            student=lambda leaves: {"protocol": "frepo-quick-v1"},
        )

    def _mirrors(self, task: Task) -> bool:
        """As published: for colored images that may be mirrored, and at most 500 of them."""
        from datastill.augment.strategies import strategy_for

        if self.mirror != "auto":
            return self.mirror == "on"
        fits = "flip" in strategy_for(task.real.name, task.real.shape) and task.real.shape[0] > 1
        return fits and len(task.labels) <= _FLIPPED

    def macs_per_step(self, task: Task) -> float:
        """One pass per real image, three per image of the support and of the network's update."""
        real = sum(min(self.real_batch, int(n)) for n in task.real.counts)
        n = len(task.labels)
        support = 2 * n if self._mirrors(task) else n
        return task.network.macs * (real + 3 * support + 3 * min(n, self.net_batch)) + support**3

    def scaled(self, task: Task, seconds: float) -> FRePo:
        """Smaller real batches before fewer steps, at larger rates where these are few."""
        made = self.within(replace(self, real_batch=min(self.real_batch, 32)), task, seconds)
        if made is self or made.steps > _SHORT:
            return made
        rates = dict.fromkeys(("image_lr", "label_lr", "net_lr"), _SHORT_RATE)
        return replace(made, **{name: max(rate, getattr(self, name)) for name, rate in rates.items()})
