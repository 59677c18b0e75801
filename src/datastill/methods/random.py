"""Random selection: the baseline that stands beside every result.

S_c = ipc distinct images of class c, drawn from the seed; in proportion to their weights where the set has weights.

- Needs: nothing.
- Cost: none.
- Departs: released codes sometimes take the first images of a class and call them random; these are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


@method("random", paper="baseline", family="coreset")
@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Distinct random real images of each class, or pairs."""

    takes: ClassVar[tuple[str, ...]] = ("classes", "pairs")

    def build(self, task: Task) -> Plan:
        """The initialization is the result."""
        from datastill.core.plan import Plan
        from datastill.decoders.pixels import Pixels
        from datastill.sampling.inits import RandomReal
        from datastill.sampling.weighted import WeightedReal

        init = RandomReal() if task.real.weights is None else WeightedReal()
        if task.real.kind == "pairs":
            from datastill.labels.sentences import SentenceVectors

            return Plan(init=init, decoder=Pixels(), labels=SentenceVectors())
        return Plan(init=init, decoder=Pixels())
