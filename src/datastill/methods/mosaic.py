"""Random mosaics: the start of methods with tiles (IDC, arXiv:2205.14959), as a baseline beside them.

Every stored image holds factor x factor real images of its class, reduced to tiles; each is enlarged to a whole image
again. The first tiles are those of `random`; like these they are drawn by weight where the set has weights.

- Needs: nothing.
- Cost: none.
- Departs: as released, but drawn from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datastill.core.ranges import Tiles
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


@method("mosaic", paper="baseline", family="coreset")
@dataclass(frozen=True, kw_only=True)
class Mosaic(Method):
    """Random real images of each class, several to a stored image."""

    factor: Tiles = 2  #: a stored image holds factor x factor smaller ones

    def build(self, task: Task) -> Plan:
        """The initialization is the result."""
        from datastill.core.plan import Plan
        from datastill.decoders.multi_formation import MultiFormation
        from datastill.sampling.inits import MixReal
        from datastill.sampling.weighted import WeightedReal

        pad = 0.5 if task.real.space.kind == "raw" else 0.0
        init = MixReal(self.factor) if task.real.weights is None else WeightedReal(self.factor)
        return Plan(init=init, decoder=MultiFormation(self.factor, pad=pad))
