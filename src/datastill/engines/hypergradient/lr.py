"""The student's learning rate alpha as a leaf that is learned, and the guard that keeps it above zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.errors import InputError, nearest
from datastill.core.plan import Stepper, UpdateRule

Kind = Literal["raw", "log", "softplus", "fixed"]


@dataclass(frozen=True)
class SyntheticLr:
    """How the leaf r gives alpha: "raw" alpha = r, "log" alpha = e^r, "softplus" alpha = log(1 + e^r), "fixed" no leaf.

    Raises:
        InputError: an unknown kind, or an initial alpha that is not positive.
    """

    kind: Kind = "raw"
    initial: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(
                f"Unknown kind of learned learning rate {self.kind!r}. {nearest(self.kind, get_args(Kind))}"
            )
        if not (self.initial > 0 and math.isfinite(self.initial)):
            raise InputError(f"The student's learning rate starts above zero, not at {self.initial}.")

    def leaf(self) -> Tensor:
        """r for the initial alpha, (1,) float32."""
        alpha = self.initial
        if self.kind == "log":
            return torch.tensor([math.log(alpha)])
        return torch.tensor([alpha + math.log(-math.expm1(-alpha)) if self.kind == "softplus" else alpha])

    def alpha(self, r: Tensor | None) -> Tensor:
        """alpha, 0-dim, from the leaf (0-dim or one element); without a leaf the initial one."""
        if r is None or self.kind == "fixed":
            return torch.tensor(self.initial)
        r = r.detach().reshape(())
        if self.kind == "log":
            return r.exp()
        return F.softplus(r) if self.kind == "softplus" else r.clone()

    def slope(self, r: Tensor) -> Tensor:
        """d alpha / d r, shaped like the leaf."""
        r = r.detach()
        if self.kind == "log":
            return r.exp()
        if self.kind == "softplus":
            return r.sigmoid()
        return torch.zeros_like(r) if self.kind == "fixed" else torch.ones_like(r)

    def step_size(self, lr: float) -> float:
        """The learning rate of r that first moves alpha as `lr` would move a raw alpha: lr / (d alpha / d r)^2."""
        return lr / float(self.slope(self.leaf())) ** 2 if self.kind != "fixed" else lr


@dataclass(frozen=True)
class KeepPositive:
    """An update rule for a raw alpha: a step that would end at or below `least` is not taken, and momentum forgotten.

    Otherwise alpha can cross zero, and the student would climb its loss.
    """

    rule: UpdateRule
    least: float = 1e-6

    def bind(self, leaf: Tensor) -> KeepPositiveStepper:
        """The rule with its own state for one leaf."""
        return KeepPositiveStepper(leaf, self.rule.bind(leaf), self.least)


class KeepPositiveStepper:
    """`KeepPositive` bound to a leaf; `refused` counts the steps that were not taken."""

    early = False
    lasting = ("refused",)

    def __init__(self, leaf: Tensor, inner: Stepper, least: float) -> None:
        if inner.early:
            raise InputError("A learning rate that is kept positive needs an update rule without early moves.")
        self.leaf, self.inner, self.least = leaf, inner, least
        self.refused = 0

    def before(self) -> None:
        """Nothing: the leaf moves after its gradient is known."""

    def after(self, grad: Tensor, progress: float) -> None:
        """One step along `grad`, unless it would leave the range."""
        before = self.leaf.detach().clone()
        self.inner.after(grad, progress)
        if bool((self.leaf <= self.least).any()):
            self.refused += 1
            with torch.no_grad():
                self.leaf.copy_(before)
                kept = self.inner.lasting
                forgotten = {n: t if n in kept else torch.zeros_like(t) for n, t in self.inner.state().items()}
                self.inner.load(forgotten)

    def finish(self) -> None:
        """As the inner rule."""
        self.inner.finish()

    def note(self) -> str:
        """What the inner rule says, and how many steps were not taken; for the manifest."""
        inner = self.inner.note()
        refused = f"{self.refused} steps not taken that would have ended at or below {self.least:g}"
        return "; ".join(filter(None, [inner, refused if self.refused else ""]))

    def state(self) -> dict[str, Tensor]:
        """The inner rule's state, and the count."""
        return {**self.inner.state(), "refused": torch.tensor(self.refused)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.refused = int(state["refused"]) if "refused" in state else 0
        self.inner.load({name: value for name, value in state.items() if name != "refused"})
