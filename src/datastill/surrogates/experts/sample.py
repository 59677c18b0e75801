"""Segments of expert trajectories as the surrogates of a plan (Cazenavette et al., CVPR 2022, arXiv:2203.11932).

Experts are walked through in a seeded order without replacement, a new order for every pass. The reference shuffles
files of ten and exhausts one before it opens the next: the same frequencies, with borders between files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import Diverged, InputError
from datastill.surrogates.experts.store import ExpertBuffer, open_buffer
from datastill.surrogates.experts.unit import ExpertsUnit

if TYPE_CHECKING:
    from datastill.models.base import Network

#: The bound on start epochs (exclusive) at a run's progress in [0, 1).
Window = Callable[[float], int]

#: A segment whose squared length is below this part of the squared norm of its start is drawn again.
_STANDS_STILL = 1e-12
_TRIES = 20


@dataclass(frozen=True)
class Segment:
    """Where a student starts, and where the expert went from there.

    Attributes:
        start: parameters after epoch t, (P,) float32 on the task's device, in the order of `named_parameters()`.
        targets: parameters after epochs t+1 to t+span, (span, P).
        expert: which.
        epoch: t.
        network: a module of the architecture on the device, in train mode, for functional calls with other weights;
            its own weights mean nothing.
    """

    start: Tensor
    targets: Tensor
    expert: int
    epoch: int
    network: Network


@dataclass(frozen=True)
class Growing:
    """A window that grows from early, easy segments to late ones (DATM: Guo et al., ICLR 2024, arXiv:2310.05773).

    The bound at progress p is min(last, first + floor((last - first) * p / until)).

    Raises:
        InputError: it does not grow.
    """

    first: int  #: bound on start epochs (exclusive) at the beginning
    last: int  #: bound in the end
    until: float  #: part of the run after which the bound is `last`: expansion_end_epoch / steps

    def __post_init__(self) -> None:
        if not (self.first <= self.last and self.until > 0 and math.isfinite(self.until)):
            raise InputError(f"A growing window needs first <= last and until above 0, not {self}.")

    def __call__(self, progress: float) -> int:
        """The bound at a run's progress in [0, 1)."""
        grown = (self.last - self.first) * progress / self.until
        return min(self.last, self.first + math.floor(grown + 1e-9))


def identity(buffer: ExpertBuffer) -> dict[str, Tensor]:
    """Which experts they are, for a checkpoint."""
    return {"id": _encode(buffer.id)}


def refuse_others(buffer: ExpertBuffer, state: Mapping[str, Tensor]) -> None:
    """Make sure that the experts are those whose `identity` is in a checkpoint.

    Raises:
        InputError: they are others, or there are more or fewer of them.
    """
    if "id" in state and not torch.equal(_encode(buffer.id), state["id"]):
        raise InputError(
            f"The experts in {buffer.path} are not those that this run began with: some were added, removed "
            "or trained again; put them back, or start again in another --out."
        )


def refuse_empty(buffer: ExpertBuffer) -> None:
    """Make sure that there is an expert.

    Raises:
        InputError: there is none.
    """
    if not len(buffer):
        raise InputError(f"{buffer.path} holds no finished expert; `datastill experts train` trains some.")


class Experts:
    """Each step's segment: the next expert of this pass, and a start epoch t, uniform in min_start..max_start - 1.

    Draws depend on the run's seed and the step alone, so a resumed run draws as an uninterrupted one.

    Args:
        source: the unit that prepares the experts, or the folder of a buffer.
        span: M, epochs from the start to the target.
        max_start: bound on t, exclusive as in the published code; a number, or a function of the run's progress in
            [0, 1), such as `Growing`.
        min_start: the smallest t.
    """

    def __init__(
        self, source: ExpertsUnit | str | Path, *, span: int = 2, max_start: int | Window, min_start: int = 0
    ) -> None:
        self.source, self.span, self.max_start, self.min_start = source, span, max_start, min_start
        self._opened: tuple[ExpertBuffer, Network] | None = None
        self._widest = 0

    @property
    def buffer(self) -> ExpertBuffer:
        """The experts, once a run has begun."""
        return self._held()[0]

    @property
    def network(self) -> Network:
        """A module of the architecture, once a run has begun; its weights mean nothing."""
        return self._held()[1]

    @property
    def last_epoch(self) -> int:
        """The last epoch that is ever a target: max_start - 1 + span, at the widest."""
        return self._widest - 1 + self.span

    def begin(self, context: Context) -> None:
        """Open the experts.

        Raises:
            InputError: they do not fit the task, there are none, or segments would end behind their last epoch.
        """
        task = context.task
        factory = context.plan.network or task.network
        if isinstance(self.source, ExpertsUnit):
            buffer = self.source.open(task, context.prepared.get(self.source.name, {}))
            factory = self.source.network or task.network
        else:
            buffer = open_buffer(self.source)
            buffer.check(factory, task.real)
        refuse_empty(buffer)
        self._check_window(buffer, context.steps)
        self._opened = buffer, factory(0).to(context.device).train()

    def draw(self, context: Context) -> Segment:
        """The segment of this step.

        Raises:
            Diverged: an expert stands still.
        """
        buffer, network = self._held()
        expert = self._expert(buffer, context)
        for attempt in range(_TRIES):
            t = self._epoch(context, attempt)
            rows = buffer.rows(expert, range(t, t + self.span + 1))
            moved = (rows[-1] - rows[0]).double().square().sum()
            if bool(moved > _STANDS_STILL * rows[0].double().square().sum()):
                rows = rows.to(context.device)
                return Segment(rows[0], rows[1:], expert, t, network)
        raise Diverged(
            f"Expert {expert} in {buffer.path} does not move between epoch {t} and {t + self.span}, so that there is "
            "nothing to match; train experts at a higher learning rate, or lower the bound on start epochs."
        )

    def advance(self, context: Context) -> None:
        """Nothing to advance: the next step draws another segment."""

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

    def _held(self) -> tuple[ExpertBuffer, Network]:
        if self._opened is None:
            raise InputError("The experts are not open; begin() opens them.")
        return self._opened

    def _expert(self, buffer: ExpertBuffer, context: Context) -> int:
        turn, position = divmod(context.step, len(buffer))
        generator = context.rng.generator("expert-order", context.block.key, turn)
        return buffer.experts[int(torch.randperm(len(buffer), generator=generator)[position])]

    def _epoch(self, context: Context, attempt: int) -> int:
        bound = self._bound(context.progress)
        return int(torch.randint(self.min_start, bound, (), generator=context.generator("expert-start", attempt)))

    def _bound(self, progress: float) -> int:
        return self.max_start(progress) if callable(self.max_start) else self.max_start

    def _check_window(self, buffer: ExpertBuffer, steps: int) -> None:
        if self.span < 1 or self.min_start < 0:
            raise InputError(f"A segment needs span >= 1 and min_start >= 0, not {self.span} and {self.min_start}.")
        bounds = {self._bound(step / steps) for step in range(steps)} if callable(self.max_start) else set()
        bounds = bounds or {self._bound(0.0)}
        self._widest = max(bounds)
        if min(bounds) <= self.min_start:
            raise InputError(
                f"No epoch is left to start from: starts lie in min_start={self.min_start} to max_start - 1, and "
                f"max_start is {min(bounds)} (the bound itself is left out)."
            )
        if max(bounds) - 1 + self.span > buffer.epochs:
            raise InputError(
                f"Segments would end after epoch {max(bounds) - 1 + self.span} (max_start - 1 + span), and the experts "
                f"in {buffer.path} end after epoch {buffer.epochs}; lower max_start, or train experts for longer."
            )


def _encode(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
