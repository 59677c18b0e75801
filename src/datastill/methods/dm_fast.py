"""Distribution matching on narrow surrogates with small real batches: DM's objective in many cheap steps.

L = sum_c || mean_{x in B_c} f(x) - mean_{s in S_c} f(s) ||^2
as in DM (Zhao and Bilen, WACV 2023, arXiv:2110.04181), with f a fresh network of `width` channels and B_c of
`real_batch` images. The step is many times cheaper and many more are made in the same time; evaluation networks
keep their full width.

- Needs: nothing but the real set and a network family.
- Cost: C * (real_batch forward + 3 * ipc * factor^2) passes of a narrow network a step; with the defaults about a
  three-hundredth of a DM step at one image per class.
- Departs: a setting of our own, not a published one; where its advantage ends stands on its page.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from datastill.core.ranges import AnyRate, Count, Momentum, Tiles, WidthOrNone
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task
    from datastill.methods.dm import DM


@method("dm-fast", paper="ours, after arXiv:2110.04181", family="distribution")
@dataclass(frozen=True, kw_only=True)
class DMFast(Method):
    """Match class means of features on narrow networks with small real batches."""

    steps: Count = 2_000  #: image updates
    width: WidthOrNone = 32  #: channels of the surrogates, where the network has a width; 0 keeps the network
    real_batch: Count = 8  #: real images per class and step
    image_lr: AnyRate = 1.0  #: SGD learning rate of the pixels
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels
    decay: Literal["none", "cosine"] = "cosine"  #: how the learning rate of the pixels falls over the steps
    factor: Tiles = 1  #: a stored image holds factor x factor smaller ones (multi-formation, arXiv:2205.14959)
    init: str = "real"  #: start from distinct "real" images, one for every tile, or from "noise"
    augment: str = "none"  #: DSA strategy, "none", or "auto": all operations, no flip for digits

    def build(self, task: Task) -> Plan:
        """DM's plan on a narrow network."""
        from datastill.models import narrowed

        return self._dm().build(replace(task, network=narrowed(task.network, self.width)))

    def macs_per_step(self, task: Task) -> float:
        """As DM's, on a narrow network."""
        from datastill.models import narrowed

        return self._dm().macs_per_step(replace(task, network=narrowed(task.network, self.width)))

    def scaled(self, task: Task, seconds: float) -> Method:
        """As many of these steps as the time allows."""
        return replace(self, steps=max(20, min(3_000, self.affordable(task, seconds))))

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
