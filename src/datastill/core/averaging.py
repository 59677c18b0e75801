"""A leaf that ends as an exponential moving average (EMA) of itself: ema <- d ema + (1 - d) x after each step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.plan import Stepper, UpdateRule


@dataclass(frozen=True)
class Averaged:
    """An update rule whose leaf is replaced by its mean over the steps that were taken, once there are no more.

    The mean of n steps weighs x_k by d^(n - k) (1 - d) / (1 - d^n). With `start` the initial x_0 is in it, with the
    weight d^n, and the others lack the divisor: FTD as published.

    Raises:
        InputError: a decay outside of [0, 1).
    """

    rule: UpdateRule
    decay: float  #: d
    start: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise InputError(f"The decay of a moving average is at least 0 and below 1, not {self.decay}.")

    def bind(self, leaf: Tensor) -> AveragingStepper:
        """The rule with its own state for one leaf."""
        return AveragingStepper(leaf, self)


class AveragingStepper:
    """`Averaged`, bound to a leaf."""

    def __init__(self, leaf: Tensor, rule: Averaged) -> None:
        self.leaf, self.rule = leaf, rule
        self.inner: Stepper = rule.rule.bind(leaf)
        self.early = self.inner.early
        self.mean = leaf.detach().clone() if rule.start else torch.zeros_like(leaf)
        self.count = 0

    @property
    def lasting(self) -> Collection[str]:
        """Those of the inner rule, and the mean."""
        return (*self.inner.lasting, "mean", "mean/count")

    @property
    def bias(self) -> float:
        """The weight of the initial leaf in the mean, d^n."""
        return float(self.rule.decay**self.count) if self.rule.start or not self.count else 0.0

    def before(self) -> None:
        """As the inner rule."""
        self.inner.before()

    def after(self, grad: Tensor, progress: float) -> None:
        """A step of the inner rule, and its place in the mean."""
        self.inner.after(grad, progress)
        self.mean.lerp_(self.leaf.detach(), 1 - self.rule.decay)
        self.count += 1

    def finish(self) -> None:
        """The leaf becomes the mean, where a step was taken."""
        self.inner.finish()
        if self.count:
            self.leaf.copy_(self.mean if self.rule.start else self.mean / (1 - self.rule.decay**self.count))

    def note(self) -> str:
        """What the mean is of, after what the inner rule has to say."""
        told = f"a moving average over {self.count} steps (decay {self.rule.decay:g})"
        if self.rule.start:
            told += f", in which the initial images still weigh {100 * self.bias:.2g} %"
        return "; ".join(filter(None, (self.inner.note(), told)))

    def state(self) -> dict[str, Tensor]:
        """That of the inner rule, the mean, and of how many steps it is."""
        return {**self.inner.state(), "mean": self.mean, "mean/count": torch.tensor(self.count)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if "mean" in state:
            self.mean.copy_(state["mean"])
            self.count = int(state["mean/count"])
        self.inner.load({n: t for n, t in state.items() if n not in ("mean", "mean/count")})
