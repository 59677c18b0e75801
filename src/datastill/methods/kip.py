"""Kernel Inducing Points (KIP; Nguyen, Chen and Lee, ICLR 2021, arXiv:2011.00050; with labels, arXiv:2107.13034).

L = mean_t 1/2 || y_t - K_ts (K_ss + lam tr(K_ss)/n I)^(-1) y_s ||^2
with K the kernel of a ReLU network of infinite width, s the synthetic images and t a batch of real ones.

- Needs: nothing but the real set.
- Cost: C * real_batch * C * ipc * d for the kernel, (C * ipc)^3 / 3 for the solve, and twice that for the gradient.
- Departs: dense kernels, or convolutional ones without pooling, which need no second of a graphics card; batches are
  balanced over classes; the ridge is in units of the kernel's mean diagonal and grows where the system cannot be
  solved, which is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from datastill.core.errors import InputError
from datastill.core.ranges import AdamRate, Count, Rate
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


@method("kip", paper="arXiv:2011.00050", family="kernel")
@dataclass(frozen=True, kw_only=True)
class KIP(Method):
    """Images, and labels, from which kernel ridge regression predicts the real ones."""

    compiles: ClassVar[bool] = False

    steps: Count = 2_000  #: image updates
    #: of dense networks, of convolutional ones (dearer), or of features of a new network each step
    kernel: Literal["ntk", "nngp", "conv-ntk", "conv-nngp", "features"] = "ntk"
    depth: Annotated[int, Ge(0), Le(100)] = 3  #: hidden layers, or convolutions; 0 is a linear kernel
    normalize: bool = True  #: bring each image to mean 0 and mean square 1 before the kernel of an infinite network
    ridge: Rate = 1e-6  #: lam, in units of the mean diagonal of the kernel
    target_labels: Literal["learned", "solved", "fixed"] = "learned"  #: learned, in closed form, or the classes
    real_batch: Count = 200  #: real images per class and step
    image_lr: AdamRate = 0.01  #: Adam's learning rate of the pixels
    label_lr: AdamRate = 0.01  #: Adam's learning rate of learned labels
    solve_images: Count = 1_000  #: real images per class that decide on labels in closed form, in the end
    init: Literal["real", "noise"] = "real"  #: start from distinct real images or from noise

    def build(self, task: Task) -> Plan:
        """A regression from decoded images to a real batch."""
        from datastill.core.plan import HardLabels, Labels, Plan, UpdateRule
        from datastill.core.update import Adam
        from datastill.decoders.pixels import Pixels
        from datastill.engines.kernels import infinite_kernel
        from datastill.engines.kernels.ridge import refuse_size
        from datastill.labels.learned import LEAF, Learned
        from datastill.labels.solved import Solved
        from datastill.objectives.kernel_ridge import KernelRidge
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassBatches
        from datastill.surrogates.fresh import Fresh

        refuse_size(len(task.labels), task.device)
        wide = None if self.kernel == "features" else infinite_kernel(self.kernel, self.depth, self.normalize)
        solve = self.target_labels == "solved"
        if solve and wide is None:
            raise InputError(
                "Labels in closed form (target_labels=solved) need a kernel that stays, such as ntk; features "
                "are those of another network at every step."
            )
        update: dict[str, UpdateRule] = {"images": Adam(self.image_lr)}
        labels: Labels = HardLabels()
        if self.target_labels == "learned":
            labels, update[LEAF] = Learned(), Adam(self.label_lr)
        elif wide is not None and solve:
            labels = Solved(wide, self.ridge, self.solve_images)
        return Plan(
            init=make_init(self.init),
            decoder=Pixels(),
            objective=KernelRidge(wide, self.ridge, solve=solve, remark=self._remark(task)),
            surrogates=Fresh(task.network) if wide is None else None,
            sampler=ClassBatches(self.real_batch),
            labels=labels,
            update=update,
            steps=self.steps,
            network=task.network if wide is None else None,
            student=lambda leaves: {"protocol": self._protocol()},
        )

    def _protocol(self) -> str:
        """The regression by the kernel of its kind, or where that is a finite network's, training one."""
        if self.kernel == "features":
            return "frepo-quick-v1"
        return "krr-conv-v1" if self.kernel.startswith("conv") else "krr-v1"

    def _remark(self, task: Task) -> str:
        if self.kernel != "features" or not task.network.couples_samples:
            return ""
        return "batch norm was in training mode: each side was normalized by its own statistics, all images in one pass"

    def macs_per_step(self, task: Task) -> float:
        """Inner products of pixels and the solve, forth and back, or passes of the network and those of features."""
        n, real = len(task.labels), sum(min(self.real_batch, int(count)) for count in task.real.counts)
        channels, height, width = task.real.shape
        solve = n**3 + 3 * real * n * task.classes
        if self.kernel == "features":
            return task.network.macs * (real + 3 * n) + solve
        pairs, layers = n * real + n * n, float(self.depth)
        if self.kernel.startswith("conv"):  # places of the layers, each a quarter of the last one's
            layers = sum(max(1.0, height * width / 4**k) for k in range(1, self.depth + 1))
        return 3 * pairs * (channels * height * width + 50 * layers) + solve  # one is as dear as fifty products
