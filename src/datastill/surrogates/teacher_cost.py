"""What a squeezed teacher costs: how `auto` and budgets scale a method that trains one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self

from datastill.core.registry import NOMINAL_STEP_SECONDS, Method, nominal_speed

if TYPE_CHECKING:
    from datastill.core.plan import Task
    from datastill.models.factory import NetworkFactory
    from datastill.surrogates.teachers import TeacherSource

replace: Any = dataclasses.replace  #: the fields are those of the methods that inherit from this


class PaysForTeacher(Method):
    """A method that trains a teacher before its steps, so that a time pays for both."""

    settled_by_budget: ClassVar[frozenset[str]] = frozenset({"steps", "squeeze_passes"})

    if TYPE_CHECKING:  # what the method's fields are to have
        teacher: str
        squeeze_passes: int
        squeeze_batch: int

    def source(self, task: Task) -> TeacherSource:
        """Where the teacher comes from."""
        raise NotImplementedError

    def squeezed(self, task: Task) -> list[NetworkFactory]:
        """The networks that are trained before the steps."""
        return [] if self.teacher else [task.network]

    def with_passes(self, task: Task, seconds: float) -> Self:
        """This method with as many passes of the squeeze as `seconds` allow at the nominal speed."""
        if not self.squeezed(task):
            return self
        a_pass = self._squeeze_seconds(task) / self.squeeze_passes
        return replace(self, squeeze_passes=max(1, min(self.squeeze_passes, int(seconds / a_pass))))

    def selection_macs(self, task: Task) -> float:
        """Multiply-accumulates of choosing the start with the teacher."""
        return 0.0

    def _squeeze_seconds(self, task: Task) -> float:
        """Of the squeeze, at the nominal speed, with what an update costs beside its arithmetic."""
        networks = self.squeezed(task)
        updates = len(networks) * self.squeeze_passes * -(-len(task.real) // self.squeeze_batch)
        work = 3.0 * self.squeeze_passes * len(task.real) * sum(network.macs for network in networks)
        return work / nominal_speed(task.device.type) + updates * NOMINAL_STEP_SECONDS

    def nominal_preparation(self, task: Task) -> float:
        """Seconds of the squeeze, and of a start that the teacher chooses, at the nominal speed."""
        return self._squeeze_seconds(task) + self.selection_macs(task) / nominal_speed(task.device.type)

    @contextmanager
    def rehearse(self, task: Task) -> Iterator[tuple[Self, float]]:
        """This method on a network that is good for timing its steps alone, and the seconds of its own preparation."""
        choosing = self.selection_macs(task) / nominal_speed(task.device.type)
        if self.teacher:
            yield self, choosing
            return
        from datastill.surrogates.teachers import Squeeze
        from datastill.surrogates.teachers.rehearse import rehearse

        source = self.source(task)
        assert isinstance(source, Squeeze)
        stand_in, seconds = rehearse(source, task)
        pace = seconds / self._squeeze_seconds(task)
        yield replace(self, teacher=stand_in), seconds + pace * choosing

    def at_pace(self, task: Task, seconds: float, preparation: float, step: float) -> Self:
        """Fewer passes of the squeeze: in half of the time where there are steps to take, in all of it where none are.

        Each nominal second of preparation takes `preparation` seconds.
        """
        choosing = preparation * self.selection_macs(task) / nominal_speed(task.device.type)
        half = seconds / 2 if self.steps else seconds
        return self.with_passes(task, max(0.0, half - choosing) / preparation)
