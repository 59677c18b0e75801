"""What methods share that begin with a trained teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from datastill.core.registry import NOMINAL_MACS_PER_SECOND, NOMINAL_STEP_SECONDS, Method

if TYPE_CHECKING:
    from datastill.core.plan import Task
    from datastill.surrogates.teachers import TeacherSource


@dataclass(frozen=True, kw_only=True)
class Squeezed(Method):
    """A teacher that is trained here, or brought."""

    teacher: str = ""  #: folder of a trained teacher (datastill teacher); none trains one here
    squeeze_passes: int = 10  #: passes over the real set to train the teacher
    squeeze_lr: float = 0.1  #: SGD learning rate of the teacher
    squeeze_batch: int = 128  #: images per step of the teacher's training

    compiles: ClassVar[bool] = False
    matches_statistics: ClassVar[bool] = True  #: whether the teacher needs batch norm
    settled_by_budget: ClassVar[frozenset[str]] = frozenset({"steps", "squeeze_passes"})

    def usual_network(self) -> str | None:
        """The teacher's network, or a ConvNet with batch norm."""
        if not self.teacher:
            return "convnet:norm=batch"
        from datastill.surrogates.teachers import as_teacher

        return as_teacher(self.teacher, option="--network (network=)").spec

    def source(self, task: Task) -> TeacherSource:
        """Where the teacher comes from; one whose network is not built in is built as the task's network is."""
        from datastill.surrogates.teachers import Brought, Squeeze, as_teacher

        if self.teacher:
            teacher = as_teacher(self.teacher, task.network, "--network (network=)")
            return Brought(teacher, self.matches_statistics)
        return Squeeze(
            self.squeeze_passes, self.squeeze_lr, batch=self.squeeze_batch, statistics=self.matches_statistics
        )

    def with_passes(self, task: Task, seconds: float) -> Self:
        """This method with as many passes of the squeeze as `seconds` allow at the nominal speed."""
        if self.teacher:
            return self
        a_pass = self._squeeze_seconds(task) / self.squeeze_passes
        return replace(self, squeeze_passes=max(1, min(self.squeeze_passes, int(seconds / a_pass))))

    def selection_macs(self, task: Task) -> float:
        """Multiply-accumulates of choosing the start with the teacher."""
        return 0.0

    def _squeeze_seconds(self, task: Task) -> float:
        """Of the squeeze, at the nominal speed, with what an update costs beside its arithmetic."""
        if self.teacher:
            return 0.0
        updates = self.squeeze_passes * -(-len(task.real) // self.squeeze_batch)
        work = 3.0 * self.squeeze_passes * len(task.real) * task.network.macs
        return work / _speed(task) + updates * NOMINAL_STEP_SECONDS

    def nominal_preparation(self, task: Task) -> float:
        """Seconds of the squeeze, and of a start that the teacher chooses, at the nominal speed."""
        return self._squeeze_seconds(task) + self.selection_macs(task) / _speed(task)

    @contextmanager
    def rehearse(self, task: Task) -> Iterator[tuple[Self, float]]:
        """This method on a network that is good for timing its steps alone, and the seconds of its own preparation."""
        choosing = self.selection_macs(task) / _speed(task)
        if self.teacher:
            yield self, choosing
            return
        from datastill.surrogates.teachers import Squeeze
        from datastill.surrogates.teachers.rehearse import rehearse

        source = self.source(task)
        assert isinstance(source, Squeeze)
        stand_in, seconds = rehearse(source, task)
        pace = seconds / self._squeeze_seconds(task)
        yield replace(self, teacher=stand_in), seconds + pace * choosing  # type: ignore[arg-type]

    def at_pace(self, task: Task, seconds: float, preparation: float, step: float) -> Self:
        """Fewer passes of the squeeze: in half of the time where there are steps to take, in all of it where none are.

        Each nominal second of preparation takes `preparation` seconds.
        """
        choosing = preparation * self.selection_macs(task) / _speed(task)
        half = seconds / 2 if self.steps else seconds
        return self.with_passes(task, max(0.0, half - choosing) / preparation)


def _speed(task: Task) -> float:
    return NOMINAL_MACS_PER_SECOND.get(task.device.type, NOMINAL_MACS_PER_SECOND["cpu"])
