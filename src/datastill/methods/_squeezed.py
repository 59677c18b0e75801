"""What methods share that begin with a trained teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from datastill.core.ranges import Count, Rate
from datastill.surrogates.teacher_cost import PaysForTeacher

if TYPE_CHECKING:
    from datastill.core.plan import Task
    from datastill.surrogates.teachers import TeacherSource


@dataclass(frozen=True, kw_only=True)
class Squeezed(PaysForTeacher):
    """A teacher that is trained here, or brought."""

    teacher: str = ""  #: folder of a trained teacher (datastill teacher); none trains one here
    squeeze_passes: Count = 10  #: passes over the real set to train the teacher
    squeeze_lr: Rate = 0.1  #: SGD learning rate of the teacher
    squeeze_batch: Count = 128  #: images per step of the teacher's training

    compiles: ClassVar[bool] = False
    voids: ClassVar[dict[str, tuple[str, ...]]] = {"teacher": ("squeeze_passes", "squeeze_lr", "squeeze_batch")}
    matches_statistics: ClassVar[bool] = True  #: whether the teacher needs batch norm

    def usual_network(self) -> str | None:
        """The teacher's network, or a ConvNet with batch norm."""
        if not self.teacher:
            return "convnet:norm=batch"
        from datastill.surrogates.teachers import as_teacher

        return as_teacher(self.teacher, option="--network (network=)").spec

    def source(self, task: Task) -> TeacherSource:
        """Where the teacher comes from; one whose network is not built in is built as the task's network is."""
        from datastill.engines.statistics import norm_layers
        from datastill.surrogates.teachers import Brought, Squeeze, as_teacher

        if self.teacher:
            teacher = as_teacher(self.teacher, task.network, "--network (network=)")
            return Brought(teacher, self.matches_statistics)
        if self.matches_statistics:
            norm_layers(task.network(0))  # without batch norm this ends here, before anything is measured or trained
        return Squeeze(
            self.squeeze_passes, self.squeeze_lr, batch=self.squeeze_batch, statistics=self.matches_statistics
        )
