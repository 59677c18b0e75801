"""One trained network for every step: a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from datastill.core.context import Context
from datastill.surrogates.teachers import TeacherSource


@dataclass
class Pretrained:
    """The teacher of a prepared unit, frozen, in evaluation mode, for images in the Space of the data."""

    source: TeacherSource
    _network: nn.Module | None = field(default=None, repr=False)

    def begin(self, context: Context) -> None:
        """Build it, once for all blocks."""
        if self._network is None:
            teacher = self.source.teacher(context.task, context.prepared[self.source.name])
            real = context.task.real
            self._network = teacher.seen_from(real.space, real.class_names).to(context.device)

    @property
    def network(self) -> nn.Module:
        """The teacher's network."""
        assert self._network is not None, "begin comes first"
        return self._network

    def draw(self, context: Context) -> nn.Module:
        """The same network at every step."""
        return self.network

    def advance(self, context: Context) -> None:
        """Nothing to advance."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to remember."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to remember."""
