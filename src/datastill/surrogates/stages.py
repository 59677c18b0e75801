"""Stages of trained networks as surrogates: each step a snapshot of an expert, or weights between its first and last.

DM draws fresh networks. DANCE (Zhang et al., IJCAI 2024, arXiv:2406.01063) draws w = lam * init + (1 - lam) * final
with lam ~ U(0, 1); TGDD (Ran et al., AAAI 2026, arXiv:2512.02469) draws a snapshot e ~ U{0..E}. All add a
cross-entropy on a network of the same expert: on the final one, on the drawn one, or on one of the `window` snapshots
from it on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError, nearest
from datastill.surrogates.experts import ExpertBuffer, ExpertsUnit
from datastill.surrogates.experts.sample import identity, refuse_empty, refuse_others

if TYPE_CHECKING:
    from datastill.core.plan import Task
    from datastill.models.base import Network

Law = Literal["snapshots", "interpolated"]


@dataclass(frozen=True)
class Stage:
    """What a step matches on.

    Attributes:
        network: of the features, frozen, in evaluation mode.
        classifier: of the cross-entropy: the same network, or a later one of the same expert; None where there is none.
        expert: its position in the buffer.
        position: of the snapshot among `Stages.epochs`; -1 for weights between the first and the last.
    """

    network: Network
    classifier: Network | None
    expert: int
    position: int = -1


@dataclass
class Stages:
    """A stage of an expert for each step; draws depend on the run's seed and the step alone.

    Networks are in evaluation mode: where they keep running statistics, those are of their own training, so that no
    layer couples the images of a batch.

    Args:
        unit: prepares the experts.
        law: "snapshots", uniform over `epochs`; or "interpolated", uniform between initialization and last snapshot.
        epochs: the snapshots to draw from, ascending; of "interpolated", the last one is the final network.
        classify: the network of the cross-entropy: "none", "same", "final", or "window".
        window: snapshots from the drawn one on, itself included, among which "window" draws uniformly.

    Raises:
        InputError: an option out of range.
    """

    unit: ExpertsUnit
    epochs: Sequence[int]
    law: Law = "snapshots"
    classify: Literal["none", "same", "final", "window"] = "none"
    window: int = 1
    _opened: tuple[ExpertBuffer, Network, Network] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.law not in get_args(Law):
            raise InputError(f"There is no law of stages {self.law!r}. {nearest(self.law, get_args(Law))}")
        if not self.epochs or self.window < 1:
            raise InputError("Stages need at least one snapshot to draw from, and a window of at least 1.")

    def begin(self, context: Context) -> None:
        """Open the experts.

        Raises:
            InputError: they do not fit the task, there are none, or they end before the last snapshot.
        """
        task = context.task
        buffer = open_experts(self.unit, task, context.prepared.get(self.unit.name, {}), self.epochs)
        factory = self.unit.network or task.network
        first, second = (factory(0).to(context.device).requires_grad_(False).eval() for _ in range(2))
        self._opened = buffer, first, second

    def draw(self, context: Context) -> Stage:
        """The stage of this step."""
        assert self._opened is not None, "begin comes first"
        buffer, network, other = self._opened
        generator = context.generator("stage")
        expert = int(torch.randint(len(buffer), (), generator=generator))
        if self.law == "interpolated":
            share, position = float(torch.rand((), generator=generator)), -1
            load_between(buffer, network, expert, self.epochs[-1], share)
        else:
            position = int(torch.randint(len(self.epochs), (), generator=generator))
            buffer.load(network, buffer.experts[expert], self.epochs[position])
        if self.classify in ("none", "same"):
            return Stage(network, network if self.classify == "same" else None, expert, position)
        later = len(self.epochs) - 1
        if self.classify == "window" and position >= 0:
            last = min(position + self.window, len(self.epochs))
            later = position + int(torch.randint(last - position, (), generator=generator))
        buffer.load(other, buffer.experts[expert], self.epochs[later])
        return Stage(network, other, expert, position)

    def advance(self, context: Context) -> None:
        """Nothing to advance: the next step draws another stage."""

    def state(self) -> dict[str, Tensor]:
        """Which experts they are."""
        return {} if self._opened is None else identity(self._opened[0])

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Make sure that the experts are those that the run began with.

        Raises:
            InputError: they are others, or there are more or fewer of them.
        """
        if self._opened is not None:
            refuse_others(self._opened[0], state)


def open_experts(unit: ExpertsUnit, task: Task, prepared: Mapping[str, Tensor], epochs: Sequence[int]) -> ExpertBuffer:
    """The experts that a unit prepared, which are to have snapshots after all of `epochs`.

    Raises:
        InputError: there are none, or they end too early.
    """
    buffer = unit.open(task, prepared)
    refuse_empty(buffer)
    if max(epochs) > buffer.epochs:
        raise InputError(
            f"A snapshot after epoch {max(epochs)} is asked for, and the experts in {buffer.path} end after "
            f"{buffer.epochs}; train longer ones, or ask for earlier stages."
        )
    return buffer


def load_between(buffer: ExpertBuffer, network: Network, expert: int, last: int, share: float) -> None:
    """Put share * init + (1 - share) * final into a network: all of a snapshot, running statistics too."""
    number = buffer.experts[expert]
    buffer.load(network, number, last)
    final = {name: value.clone() for name, value in network.state_dict().items()}
    buffer.load(network, number, 0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.mul_(share).add_(final[name].to(value.device), alpha=1 - share)


def spread_out(last: int, count: int) -> tuple[int, ...]:
    """Epochs of at most `count` snapshots up to `last`, ascending, each a factor later than the one before."""
    count = min(count, last)
    if count == 1:
        return (last,)
    exact = [last ** (k / (count - 1)) for k in range(count)]
    found: list[int] = []
    for k, epoch in enumerate(exact):
        found.append(min(last - (count - 1 - k), max(round(epoch), found[-1] + 1 if found else 1)))
    return tuple(found)
