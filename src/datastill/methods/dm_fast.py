"""Distribution matching on narrow surrogates with small real batches: DM's objective in many cheap steps.

L = sum_c || mean_{x in B_c} f(x) - mean_{s in S_c} f(s) ||^2
as in DM (Zhao and Bilen, WACV 2023, arXiv:2110.04181), with f a fresh network of `width` channels and B_c of
`real_batch` images. The step is many times cheaper and many more are made in the same time; evaluation networks
keep their full width.

- Needs: nothing but the real set and a network family.
- Cost: C * (real_batch forward + 3 * ipc * factor^2) passes of a narrow network a step; with the defaults about a
  three-hundredth of a DM step at one image per class.
- Departs: a setting of our own, not a published one; where its advantage ends stands on its page. For a network with
  batch norm a ConvNet with instance norm is matched on, and images keep the brightness and contrast of real ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from datastill.core.ranges import AnyRate, Count, Momentum, Tiles, WidthOrNone
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task
    from datastill.methods.dm import DM
    from datastill.models import NetworkFactory


@method("dm-fast", paper="ours, after arXiv:2110.04181", family="distribution")
@dataclass(frozen=True, kw_only=True)
class DMFast(Method):
    """Match class means of features on narrow networks with small real batches."""

    steps: Count = 2_000  #: image updates
    #: channels of the surrogates, where the network has a width, and of a ConvNet in the place of a network with batch
    #: norm; 0 keeps the network
    width: WidthOrNone = 32
    real_batch: Count = 8  #: real images per class and step
    image_lr: AnyRate = 1.0  #: SGD learning rate of the pixels
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels
    decay: Literal["none", "cosine"] = "cosine"  #: how the learning rate of the pixels falls over the steps
    factor: Tiles = 1  #: a stored image holds factor x factor smaller ones (multi-formation, arXiv:2205.14959)
    init: str = "real"  #: start from distinct "real" images, one for every tile, or from "noise"
    augment: str = "none"  #: DSA strategy, "none", or "auto": all operations, no flip for digits

    def build(self, task: Task) -> Plan:
        """DM's plan on a narrow network, with the contrast of real images where it is a stand-in."""
        from datastill.decoders.contrast import Contrast
        from datastill.decoders.pixels import Pixels

        network = self._matched(task)
        plan = self._dm().build(replace(task, network=network))
        if self.factor != 1 or not self._stands_in(task):
            return plan
        return replace(plan, decoder=Pixels(contrast=Contrast.of(task.real)))

    def macs_per_step(self, task: Task) -> float:
        """As DM's, on a narrow network."""
        return self._dm().macs_per_step(replace(task, network=self._matched(task)))

    def scaled(self, task: Task, seconds: float) -> Method:
        """As many of these steps as the time allows."""
        return replace(self, steps=max(20, min(3_000, self.affordable(task, seconds))))

    def remarks(self, task: Task) -> tuple[str, ...]:
        """Which network stands in for one with batch norm."""
        if not self._stands_in(task):
            return ()
        kept = ", and images keep the brightness and contrast of real ones" if self.factor == 1 else ""
        return (f"{task.network} has batch norm: {self._matched(task)} with instance norm is matched on{kept}",)

    def _stands_in(self, task: Task) -> bool:
        """Whether a ConvNet takes the place of the network, which has batch norm."""
        from datastill.engines.statistics import batch_normed

        return self.width > 0 and batch_normed(task.network)

    def _matched(self, task: Task) -> NetworkFactory:
        """The narrow network that is matched on."""
        from datastill.models import narrowed, resolve_network

        network = task.network
        if self._stands_in(task):
            network = resolve_network(None, channels=network.channels, classes=network.classes, size=network.size)
        return narrowed(network, self.width)

    def _dm(self) -> DM:
        from datastill.methods.dm import DM

        return DM(
            steps=self.steps,
            real_batch=self.real_batch,
            image_lr=self.image_lr,
            image_momentum=self.image_momentum,
            decay=self.decay,
            factor=self.factor,
            init=self.init,
            augment=self.augment,
        )
