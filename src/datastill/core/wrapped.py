"""Update rules around update rules: one that moves now and then, one whose result is an average."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.plan import Stepper, UpdateRule
from datastill.core.space import Space
from datastill.core.update import FirstGradients


class _Wrapped:
    """A stepper around another one, whose state stands beside its own under the prefix "rule."."""

    lasting: Collection[str] = ()

    def __init__(self, leaf: Tensor, inner: Stepper) -> None:
        self.leaf, self.inner, self.early = leaf, inner, inner.early
        self.lasting = {*self.lasting, *(f"rule.{name}" for name in inner.lasting)}

    def note(self) -> str:
        """What the inner rule says."""
        return self.inner.note()

    def state(self) -> dict[str, Tensor]:
        """That of the inner rule."""
        return {f"rule.{name}": value for name, value in self.inner.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        inner = {name.removeprefix("rule."): value for name, value in state.items() if name.startswith("rule.")}
        self.inner.load(inner)


@dataclass(frozen=True)
class Every:
    """A rule that moves its leaf at the first of every `k` steps that are taken, and leaves it alone at the others."""

    rule: UpdateRule
    k: int

    def bind(self, leaf: Tensor) -> Stepper:
        """The rule with its own state for one leaf.

        Raises:
            InputError: `k` is below 1.
        """
        if self.k < 1:
            raise InputError(f"A leaf moves at every step or at every k-th one, not at every {self.k}th.")
        return _EveryStepper(leaf, self.rule.bind(leaf), self.k)


class _EveryStepper(_Wrapped):
    lasting = ("taken",)

    def __init__(self, leaf: Tensor, inner: Stepper, k: int) -> None:
        super().__init__(leaf, inner)
        self.k, self.taken = k, 0

    def before(self) -> None:
        if self.taken % self.k == 0:
            self.inner.before()

    def after(self, grad: Tensor, progress: float) -> None:
        if self.taken % self.k == 0:
            self.inner.after(grad, progress)
        self.taken += 1

    def finish(self) -> None:
        self.inner.finish()

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "taken": torch.tensor(self.taken)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        self.taken = int(state["taken"])


@dataclass(frozen=True)
class Ema:
    """A rule whose result is the moving average of where it led.

    Of n steps the k-th weighs d^(n - k) (1 - d) / (1 - d^n): there is no bias towards the beginning. With `start` the
    average begins with the initial leaf, which keeps the weight d^n, and the others lack the divisor.
    """

    rule: UpdateRule
    decay: float  #: d
    start: bool = False

    def bind(self, leaf: Tensor) -> Stepper:
        """The rule with its own state for one leaf.

        Raises:
            InputError: `decay` is not in [0, 1).
        """
        if not 0 <= self.decay < 1:
            raise InputError(f"The decay of a moving average lies in [0, 1), not at {self.decay}.")
        return _EmaStepper(leaf, self.rule.bind(leaf), self.decay, self.start)


class _EmaStepper(_Wrapped):
    """A step is averaged when the next begins, since the decoder may still project the leaf after it."""

    lasting = ("average", "averaged", "due")

    def __init__(self, leaf: Tensor, inner: Stepper, decay: float, start: bool) -> None:
        super().__init__(leaf, inner)
        self.decay, self.start = decay, start
        self.average = leaf.detach().clone() if start else torch.zeros_like(leaf)
        self.averaged, self.due = 0, False

    def before(self) -> None:
        self._average()
        self.inner.before()

    def after(self, grad: Tensor, progress: float) -> None:
        self.inner.after(grad, progress)
        self.due = True

    def finish(self) -> None:
        self.inner.finish()
        self._average()
        if self.averaged:
            self.leaf.copy_(self.average / (1 if self.start else 1 - self.decay**self.averaged))

    def note(self) -> str:
        """What the inner rule says, and the weight of the initial leaf where it has one."""
        told = f"a moving average, in which the start still weighs {100 * self.decay**self.averaged:.2g} %"
        return "; ".join(filter(None, (self.inner.note(), told if self.start else "")))

    def _average(self) -> None:
        if self.due:
            self.average.mul_(self.decay).add_(self.leaf, alpha=1 - self.decay)
            self.averaged, self.due = self.averaged + 1, False

    def state(self) -> dict[str, Tensor]:
        own = {"average": self.average, "averaged": torch.tensor(self.averaged), "due": torch.tensor(self.due)}
        return {**super().state(), **own}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        self.average.copy_(state["average"])
        self.averaged, self.due = int(state["averaged"]), bool(state["due"])


#: RMS of the first steps of the pixels, in units of the Space, that takes the place of one that is too large. On the
#: networks of the papers, at their rates, it is 0.02 to 0.7; from `_TOO_LARGE` on images leave the range that any data
#: have within a few steps.
_HEALTHY, _TOO_LARGE = 0.01, 1.0


class Rated(UpdateRule, Protocol):
    """A rule with a learning rate, linear in the gradient."""

    @property
    def lr(self) -> float: ...


@dataclass(frozen=True)
class Steady:
    """A rule that is linear in the gradient, with a rate that the first gradients may lower.

    A published rate belongs to the networks of its paper: the gradient of the pixels of a ResNet is hundreds of times
    that of a ConvNet. Where the first steps, lr x (mean RMS of the first gradients), are larger than any that is known
    to work, the rate falls to the one by which they have an RMS of 0.01; where they are not, nothing changes.
    Gradients of such a network at random weights are mostly noise: at 0.1, thirty steps of DM on a ResNet-18 with batch
    norm took the start of the digits from 42 to 17 %, at 0.01 they bring it to 48.
    """

    rule: Rated
    first: int = 5  #: gradients that decide
    most: float = float("inf")  #: RMS of a first step above which the rate falls, where that is known to be lower

    def bind(self, leaf: Tensor) -> Stepper:
        """The rule with its own state for one leaf."""
        return _SteadyStepper(leaf, self.rule.bind(leaf), self)


class _SteadyStepper(_Wrapped):
    """Its state stands beside the inner rule's, whose names stay."""

    def __init__(self, leaf: Tensor, inner: Stepper, rule: Steady) -> None:
        super().__init__(leaf, inner)
        self.measured = FirstGradients(rule.first)
        self.lasting = {*self.measured.names, *inner.lasting}
        self.lr, self.most = rule.rule.lr, min(rule.most, _TOO_LARGE)

    @property
    def factor(self) -> float:
        """What the rate is multiplied by."""
        step = self.lr * self.measured.rms
        return _HEALTHY / step if step > self.most else 1.0

    def before(self) -> None:
        self.inner.before()

    def after(self, grad: Tensor, progress: float) -> None:
        self.measured.add(grad)
        factor = self.factor
        self.inner.after(grad if factor == 1.0 else grad * factor, progress)

    def finish(self) -> None:
        self.inner.finish()

    def note(self) -> str:
        if self.factor == 1.0:
            return self.inner.note()
        told = (
            f"the pixels moved at a rate of {self.lr * self.factor:.3g} instead of {self.lr:g}, at which the first "
            f"steps would have had an RMS of {_HEALTHY / self.factor:.3g}: the rate is that of other networks"
        )
        return "; ".join(filter(None, (told, self.inner.note())))

    def state(self) -> dict[str, Tensor]:
        return {**self.inner.state(), **self.measured.state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.inner.load({name: value for name, value in state.items() if name not in self.measured.names})
        if "seen" in state:
            self.measured.load(state)
        elif state:  # of before there was this rule: the rate as it was
            self.measured.seen = self.measured.first


@dataclass(frozen=True)
class Quantized:
    """A rule whose leaf ends as pixels of 8 bits in a Space: rounded, or cut off as files of released code are.

    What is labeled and trained on afterwards is then what an image file keeps.
    """

    rule: UpdateRule
    space: Space
    how: Literal["none", "round", "floor"] = "round"

    def bind(self, leaf: Tensor) -> Stepper:
        """The rule with its own state for one leaf; the rule itself where nothing is rounded."""
        inner = self.rule.bind(leaf)
        return inner if self.how == "none" else _QuantizedStepper(leaf, inner, self.space, self.how)


class _QuantizedStepper(_Wrapped):
    def __init__(self, leaf: Tensor, inner: Stepper, space: Space, how: str) -> None:
        super().__init__(leaf, inner)
        self.space, self.how = space, how

    def before(self) -> None:
        self.inner.before()

    def after(self, grad: Tensor, progress: float) -> None:
        self.inner.after(grad, progress)

    def finish(self) -> None:
        self.inner.finish()
        scaled = 255 * self.space.decode(self.leaf).clamp(0, 1)
        whole = scaled.round() if self.how == "round" else scaled.floor()
        self.leaf.copy_(self.space.encode(whole / 255))
