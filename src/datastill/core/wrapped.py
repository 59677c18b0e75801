"""Update rules around update rules: one that moves now and then, one whose result is an average."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.plan import Stepper, UpdateRule


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
    """A rule whose result is the moving average of where it led, without the bias towards its beginning."""

    rule: UpdateRule
    decay: float

    def bind(self, leaf: Tensor) -> Stepper:
        """The rule with its own state for one leaf.

        Raises:
            InputError: `decay` is not in [0, 1).
        """
        if not 0 <= self.decay < 1:
            raise InputError(f"The decay of a moving average lies in [0, 1), not at {self.decay}.")
        return _EmaStepper(leaf, self.rule.bind(leaf), self.decay)


class _EmaStepper(_Wrapped):
    """A step is averaged when the next begins, since the decoder may still project the leaf after it."""

    lasting = ("average", "averaged", "due")

    def __init__(self, leaf: Tensor, inner: Stepper, decay: float) -> None:
        super().__init__(leaf, inner)
        self.decay, self.average = decay, torch.zeros_like(leaf)
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
            self.leaf.copy_(self.average / (1 - self.decay**self.averaged))

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
