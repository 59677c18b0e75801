"""What experts of trajectory matching a time pays for: how `auto` and budgets scale a method that trains them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from datastill.core.registry import NOMINAL_STEP_SECONDS, Method, nominal_seconds, nominal_speed

if TYPE_CHECKING:
    from datastill.core.plan import Task
    from datastill.surrogates.experts import ExpertsUnit

replace: Any = dataclasses.replace  #: the fields are those of the methods that inherit from this


T = TypeVar("T", bound="PaysForExperts")

#: Of a time that does not pay for everything, what goes to experts.
SHARE = 0.5
#: Whoever says one of these has said which experts to train.
CHOSEN = frozenset({"experts", "expert_count", "expert_epochs", "expert_part"})
#: What a budget may change.
SETTLED = frozenset(
    {"steps", "student_steps", "batch_syn", "image_lr", "lr_lr", "lr_kind", "student_lr", "max_start"}
    | {"expert_count", "expert_part", "expert_batch", "expert_lr"}
)
#: Experts of short epochs: so many epochs to start from, the same rate for them and for students.
_STARTS, _RATE = 4, 0.05


@dataclass(frozen=True)
class Pace:
    """Seconds that were measured for each second at the nominal speed; 1 is the nominal speed itself."""

    experts: float = 1.0
    step: float = 1.0

    @property
    def of_experts(self) -> float:
        """That of experts, coarse: so the methods and sizes of a comparison mostly share what they train."""
        return coarse(self.experts)


def coarse(ratio: float) -> float:
    """Up to the next half power of two: measured twice, it mostly gives the same experts."""
    return float(2 ** (math.ceil(2 * math.log2(ratio)) / 2))


class PaysForExperts(Method):
    """A method that trains experts before its steps, so that a time pays for both."""

    settled_by_budget: ClassVar[frozenset[str]] = SETTLED

    if TYPE_CHECKING:  # what the method's fields are to have
        steps: int
        student_steps: int
        span: int
        max_start: int
        batch_syn: int
        image_lr: float
        lr_lr: float
        lr_kind: str
        student_lr: float
        canvas_samples: int
        experts: str
        expert_count: int
        expert_epochs: int
        expert_batch: int
        expert_part: float
        expert_lr: float

    def experts_unit(self) -> ExpertsUnit:
        """The experts that are trained, or taken from their folder."""
        raise NotImplementedError

    def scaled(self, task: Task, seconds: float) -> Self:
        """Fewer experts of short epochs for half of the time, and fewer updates of shorter students for the rest.

        Published rates of pixels and alpha do not carry over to that: they come from the first gradients.
        """
        return affordable(self, task, seconds)

    def at_pace(self, task: Task, seconds: float, preparation: float, step: float) -> Self:
        """As `scaled`, where each nominal second of experts and of steps takes so many."""
        return affordable(self, task, seconds, Pace(preparation, step))

    def with_cheap_preparation(self, task: Task, seconds: float, given: Collection[str]) -> Self:
        """Experts of short epochs where all would take more than `seconds`; not where `given` names which to train."""
        if CHOSEN & set(given) or expert_seconds(self, task) <= seconds:
            return self
        starts = (self.max_start,) if "max_start" in given else ()
        return with_short_experts(self, task, seconds, *starts)

    def nominal_preparation(self, task: Task) -> float:
        """Seconds of all experts at the nominal speed."""
        return expert_seconds(self, task)

    @contextmanager
    def rehearse(self, task: Task) -> Iterator[tuple[Self, float]]:
        """This method on experts that are good for timing its steps alone, and the seconds that its own would take."""
        if self.experts:
            yield self, 0.0
            return
        with self.experts_unit().rehearse(task) as (path, seconds):
            yield replace(self, experts=str(path), max_start=1), seconds


def overhead_macs(task: Task) -> float:
    """A step's cost beside its arithmetic, in multiply-accumulates."""
    return NOMINAL_STEP_SECONDS * nominal_speed(task.device.type)


def step_seconds(method: PaysForExperts, task: Task) -> float:
    """Of an image update, at the nominal speed."""
    return nominal_seconds(method.macs_per_step(task), task.device.type)


def expert_seconds(method: PaysForExperts, task: Task) -> float:
    """Of all experts at the nominal speed, with what a step costs beside its arithmetic; 0 where they are given."""
    if method.experts:
        return 0.0
    updates = math.ceil(method.expert_part * len(task.real) / method.expert_batch)
    epochs = method.expert_count * (method.max_start - 1 + method.span)
    work = method.experts_unit().macs(task) / nominal_speed(task.device.type)
    return work + epochs * updates * NOMINAL_STEP_SECONDS


def affordable(method: T, task: Task, seconds: float, pace: Pace | None = None) -> T:
    """Fewer experts of short epochs for half of the time, and fewer updates of shorter students for the rest.

    Published rates of pixels and alpha do not carry over to that: they come from the first gradients.
    """
    pace = pace or Pace()
    if pace.experts * expert_seconds(method, task) + method.steps * pace.step * step_seconds(method, task) <= seconds:
        return method
    cheap = with_short_experts(method, task, SHARE * seconds / pace.of_experts)
    cheap = replace(cheap, student_steps=min(method.student_steps, 15))
    left = seconds - pace.experts * expert_seconds(cheap, task)
    # On CIFAR-10 at ten images per class, 70 steps of 15 x 100 images brought 42.8 %, the 428 of 10 x 32 only 40.4.
    if left < 50 * pace.step * step_seconds(cheap, task):
        images = len(task.labels) * method.canvas_samples
        batch = min(method.batch_syn or images, images, max(32, task.classes))
        cheap = replace(cheap, student_steps=min(method.student_steps, 10), batch_syn=0 if batch == images else batch)
    steps = int(left / (pace.step * step_seconds(cheap, task)))
    return replace(cheap, steps=max(20, min(method.steps, steps)))


def with_short_experts(method: T, task: Task, seconds: float, starts: int = _STARTS) -> T:
    """Up to ten experts of five short epochs that take about `seconds` at the nominal speed.

    Args:
        starts: at most so many epochs to start from.
    """
    kind = "log" if method.lr_kind == "raw" else method.lr_kind
    changed = replace(method, image_lr=0.0, lr_lr=0.0, lr_kind=kind)
    if method.experts:
        from datastill.surrogates.experts import open_buffer

        buffer = open_buffer(method.experts)
        rate = buffer.meta["config"]["policy"].get("lr", method.student_lr)
        fitting = max(1, min(method.max_start, buffer.epochs + 1 - method.span))
        return replace(changed, max_start=fitting, student_lr=rate)
    starts = max(1, min(method.max_start, starts, method.expert_epochs + 1 - method.span))
    short = replace(changed, max_start=starts, expert_lr=_RATE, student_lr=_RATE)
    return _short(short, task, seconds)


def _short(method: T, task: Task, seconds: float) -> T:
    """Number of experts and size of their epochs; an epoch has about twenty steps where all images do not fit."""
    n, most = len(task.real), min(method.expert_count, 10)
    few = replace(method, expert_count=min(most, 3), expert_part=min(method.expert_part, 1.0, 1024 / n))
    afford = int(few.expert_count * seconds / expert_seconds(few, task))
    least, smallest = min(most, 2), min(few.expert_part, max(128, 4 * task.classes) / n)
    count = max(least, min(most, afford))
    part = min(method.expert_part, max(few.expert_part, few.expert_part * afford / count))
    found = _sized(method, n, count, part)
    while (ratio := seconds / expert_seconds(found, task)) < 1 and (count > least or part > smallest):
        if count > least:
            count = max(least, min(count - 1, int(count * ratio)))
        else:
            part = max(smallest, part * min(0.9, ratio))
        found = _sized(method, n, count, part)
    return found


def _sized(method: T, n: int, count: int, part: float) -> T:
    batch = min(method.expert_batch, max(16, round(part * n / 20)))
    return replace(method, expert_count=count, expert_part=part, expert_batch=batch)
