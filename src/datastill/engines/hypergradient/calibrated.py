"""Gradient descent that measures its first gradients: to find its learning rate, or to tell whether one fits.

The gradient of a trajectory match depends on the number of images, student steps and pixels, on the student's learning
rate and on how far experts go, so that a rate that works for one data set is far off on another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.update import FirstGradients, OptimizerStepper, Sgd

#: RMS of healthy first steps of pixels, in units of the Space.
USUAL = (1e-3, 1e-1)


@dataclass(frozen=True)
class Calibrated:
    """SGD with momentum, at the learning rate that gives the first gradients an RMS step of `step`.

    Over the first gradients the rate is step / (their mean RMS so far); after them it stays.

    Raises:
        InputError: a number out of range.
    """

    step: float  #: of the leaf, in its units, before momentum
    momentum: float = 0.0
    first: int = 5  #: gradients that decide

    def __post_init__(self) -> None:
        if not (self.step > 0 and math.isfinite(self.step)) or self.first < 1:
            raise InputError(f"A calibrated rate needs a step above 0 and at least one gradient, not {self}.")

    def bind(self, leaf: Tensor) -> MeasuringStepper:
        """The rule with its own state for one leaf."""
        return MeasuringStepper(leaf, self)

    def rate(self, rms: float) -> float:
        """The learning rate for gradients of this mean RMS."""
        return self.step / rms if rms else 0.0

    def note(self, rms: float) -> str:
        """The learning rate, for the manifest."""
        return f"learning rate {self.rate(rms):.4g}, by which the first steps had an RMS of {self.step:.4g}"


@dataclass(frozen=True)
class Watched:
    """SGD with momentum at a given learning rate, which tells where its first steps were of an unusual size."""

    lr: float
    momentum: float = 0.0
    first: int = 5  #: gradients that are measured

    def bind(self, leaf: Tensor) -> MeasuringStepper:
        """The rule with its own state for one leaf."""
        return MeasuringStepper(leaf, self)

    def rate(self, rms: float) -> float:
        """The learning rate."""
        return self.lr

    def note(self, rms: float) -> str:
        """A warning, or nothing."""
        low, high = USUAL
        if low <= self.lr * rms <= high:
            return ""
        remedy = "lower" if self.lr * rms > high else "raise"
        return (
            f"the first steps had an RMS of {self.lr * rms:.2g}, where {low:g} to {high:g} is usual: {remedy} the rate"
        )


class MeasuringStepper:
    """`Calibrated` or `Watched`, bound to a leaf."""

    early = False
    lasting = FirstGradients.names

    def __init__(self, leaf: Tensor, rule: Calibrated | Watched) -> None:
        self.rule = rule
        self.inner: OptimizerStepper = Sgd(0.0, rule.momentum).bind(leaf)
        self.measured = FirstGradients(rule.first)

    def before(self) -> None:
        """Nothing: the leaf moves after its gradient is known."""

    def after(self, grad: Tensor, progress: float) -> None:
        """One step along `grad`."""
        self.measured.add(grad)
        self.inner.optimizer.param_groups[0]["lr"] = self.rule.rate(self.measured.rms)
        self.inner.after(grad, progress)

    def finish(self) -> None:
        """As the inner rule."""
        self.inner.finish()

    def note(self) -> str:
        """What the rule has to say, for the manifest."""
        return self.rule.note(self.measured.rms) if self.measured.seen else ""

    def state(self) -> dict[str, Tensor]:
        """The momentum, and what was measured."""
        return {**self.inner.state(), **self.measured.state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            self.measured.load(state)
            self.inner.load({n: t for n, t in state.items() if n not in self.lasting})
