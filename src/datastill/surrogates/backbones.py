"""Several teachers that take turns (G-VBSM: Shao et al., CVPR 2024, arXiv:2311.17950)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Task
from datastill.engines.layer_statistics import has_targets
from datastill.surrogates.pretrained import Pretrained
from datastill.surrogates.teachers import Brought, Teacher, TeacherSource

if TYPE_CHECKING:
    from datastill.models.factory import NetworkFactory


@dataclass(frozen=True, eq=False)
class Backbone:
    """A teacher under a name of its own, of the task's network or of another.

    Attributes:
        source: trains it, or brings it.
        name: of the unit, and of its folder beside the set.
        network: what it trains; None is the task's.
        convolutions: whether one without the statistics of batch norm is taken, for its convolutions alone.
    """

    source: TeacherSource
    name: str = "teacher"
    network: NetworkFactory | None = None
    convolutions: bool = False

    def _for(self, task: Task) -> Task:
        return task if self.network is None else replace(task, network=self.network)

    def macs(self, task: Task) -> float:
        """Of its training."""
        return self.source.macs(self._for(task))

    def key(self, task: Task) -> dict[str, Any]:
        """What the weights depend on."""
        return self.source.key(self._for(task))

    def run(self, task: Task) -> dict[str, Tensor]:
        """Train it, or try the one that was brought.

        Raises:
            InputError: it has no statistics to match, or does not fit the data.
        """
        self.refuse_without_statistics(task)
        return self.source.run(self._for(task))

    def refuse_without_statistics(self, task: Task) -> None:
        """Refuse a network that has nothing to match.

        Raises:
            InputError: it has no statistics.
        """
        own = self._for(task)
        given = self.source.given if isinstance(self.source, Brought) else None
        network = own.network(0) if given is None else given.network
        if not self.convolutions and not any(has_targets(m) for m in network.modules()):
            raise InputError(
                f"The backbone {_called(given, own)} has no batch norm with running statistics, which this matches; "
                "match its convolutions alone (--without-bn convolutions), or take one with batch norm "
                "(convnet:norm=batch, resnet18:norm=batch)."
            )

    def teacher(self, task: Task, prepared: dict[str, Tensor]) -> Teacher:
        """The trained network."""
        return self.source.teacher(self._for(task), prepared)


def _called(given: Teacher | None, task: Task) -> str:
    return str(task.network) if given is None else str(given)


@dataclass
class RoundRobin:
    """One backbone after the other, a step each, from the first at the beginning of every block."""

    sources: Sequence[TeacherSource]
    _members: list[Pretrained] = field(default_factory=list, repr=False)

    def begin(self, context: Context) -> None:
        """Build all, once for all blocks."""
        if not self._members:
            self._members = [Pretrained(source) for source in self.sources]
        for member in self._members:
            member.begin(context)

    def turn(self, context: Context) -> int:
        """Whose step it is."""
        return context.step % len(self.sources)

    def draw(self, context: Context) -> nn.Module:
        """The network of this step."""
        return self._members[self.turn(context)].network

    def advance(self, context: Context) -> None:
        """Nothing to advance: turns follow from the step."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to remember."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to remember."""
