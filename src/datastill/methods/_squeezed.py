"""What methods share that begin with a trained teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from datastill.core.registry import NOMINAL_MACS_PER_SECOND, Method

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

    def usual_network(self) -> str | None:
        """The teacher's network, or a ConvNet with batch norm."""
        if not self.teacher:
            return "convnet:norm=batch"
        from datastill.surrogates.teachers import as_teacher

        return as_teacher(self.teacher).spec

    def source(self) -> TeacherSource:
        """Where the teacher comes from."""
        from datastill.surrogates.teachers import Brought, Squeeze, as_teacher

        if self.teacher:
            return Brought(as_teacher(self.teacher))
        return Squeeze(self.squeeze_passes, self.squeeze_lr, batch=self.squeeze_batch)

    def with_passes(self, task: Task, seconds: float) -> Any:
        """This method with as many passes of the squeeze as `seconds` allow at the nominal speed."""
        if self.teacher:
            return self
        speed = NOMINAL_MACS_PER_SECOND.get(task.device.type, NOMINAL_MACS_PER_SECOND["cpu"])
        a_pass = 3.0 * len(task.real) * task.network.macs / speed
        return replace(self, squeeze_passes=max(1, min(self.squeeze_passes, int(seconds / a_pass))))
