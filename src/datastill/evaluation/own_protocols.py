"""Protocols that train in a way of their own: by a squared error, by a kernel, or by the steps that a set learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from datastill.core.errors import InputError
from datastill.core.ranges import Count, Weight
from datastill.evaluation.protocols import Extras, Protocol

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.training.trainers import Trainer

#: Kinds of labels that a squared error takes: classes as centered one-hot rows, targets as they are.
TARGETS = ("classes", "regression")


@dataclass(frozen=True)
class FitsTargets(Protocol):
    """Adam on the squared error (FRePo: Zhou et al., NeurIPS 2022, arXiv:2206.00719), see `training.regression`."""

    accepts: tuple[str, ...] = TARGETS
    most: Count = 40_000  #: steps at most; fewer where the published protocol has fewer for so many images
    warmup: Count = 500  #: steps of the warm-up

    @property
    def optimizer(self) -> str:
        """See `Protocol`."""
        return "Adam"

    def trainer(self, real: RealSet, rate: float | None = None, extras: Extras | None = None) -> Trainer:
        """See `Protocol`."""
        from datastill.augment.strategies import strategy_for
        from datastill.training.regression import SquaredError

        augment = strategy_for(real.name, real.shape) if self.augment == "auto" else self.augment
        if extras is not None and not extras.augmented:
            augment = "none"
        lr = self.lr if rate is None else rate
        return SquaredError(real.classes, lr, self.most, self.warmup, self.batch, augment)


@dataclass(frozen=True)
class RegressesByKernel(Protocol):
    """Ridge regression by the kernel of a network of infinite width, see `engines.kernels`."""

    drawn: ClassVar[bool] = False

    accepts: tuple[str, ...] = TARGETS
    kernel: Literal["ntk", "conv-ntk"] = "ntk"  #: of three dense layers, or of three convolutions
    ridge: Weight = 1e-6  #: in units of the kernel's mean diagonal

    @property
    def optimizer(self) -> str:
        """None: a linear system is solved."""
        return ""

    def trainer(self, real: RealSet, rate: float | None = None, extras: Extras | None = None) -> Trainer:
        """See `Protocol`."""
        from datastill.engines.kernels import infinite_kernel
        from datastill.training.kernel_ridge import KernelTrainer

        return KernelTrainer(infinite_kernel(self.kernel), self.ridge, real.classes, self.lr)


@dataclass(frozen=True)
class TakesSteps(Protocol):
    """The few steps that a set learned with its images, in their order and sizes (DD: arXiv:1811.10959)."""

    tries: ClassVar[tuple[float, ...]] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

    learned_lr: bool = True

    def check_any_set(self) -> None:
        """See `Protocol`."""
        raise InputError(
            f"{self.name} trains by the steps that dd learns with a set, and Random and other methods come without; "
            f"score sets of dd with `datastill evaluate --protocol {self.name}`, and compare under another protocol."
        )

    def trainer(self, real: RealSet, rate: float | None = None, extras: Extras | None = None) -> Trainer:
        """See `Protocol`.

        Raises:
            InputError: the set comes without steps.
        """
        from datastill.training.few_steps import FewSteps

        if extras is None or extras.steps is None:
            raise InputError(
                f"{self.name} trains by the order and the sizes of steps that dd learns with a set, and this one comes "
                "without; take another protocol (--protocol)."
            )
        return FewSteps(extras.steps)


PROTOCOLS = (
    TakesSteps("dd-v1", "DD's: the few steps that the set learned, in their order and sizes", passes=3),
    RegressesByKernel(
        "krr-v1",
        "kernel ridge regression: NTK of three dense layers, images normalized one by one; no network",
        passes=1,
        lr=1.0,
    ),
    RegressesByKernel(
        "krr-conv-v1",
        "the same with the NTK of three convolutions at stride 2 and a dense readout",
        passes=1,
        lr=1.0,
        kernel="conv-ntk",
    ),
    FitsTargets(
        "frepo-v1",
        "FRePo's: squared error with learned targets, Adam, up to 40,000 steps with DSA",
        passes=2000,
        lr=3e-4,
        batch=500,
        augment="auto",
    ),
    FitsTargets(
        "frepo-quick-v1",
        "at most 500 steps at a rate of 0.001, else as frepo-v1",
        passes=500,
        lr=1e-3,
        batch=500,
        augment="auto",
        most=500,
        warmup=50,
    ),
)
