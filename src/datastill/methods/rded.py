"""Realistic, Diverse and Efficient Dataset Distillation (Sun, Shi, Yu and Lin, CVPR 2024, arXiv:2312.03526).

S_c = the ipc * factor^2 crops of class c with the lowest CE(f(crop), c), one crop of a real image, factor x factor of
them in a stored one, with f a network trained on the real set, which gives the labels too when a network is trained.

- Needs: a network trained here (squeeze_passes) or brought (--teacher); batch norm is not needed.
- Cost: C * candidates * crops network passes; no gradients.
- Departs: a crop is padded with the mean color of the data; images are kept as numbers, not as 8-bit files;
  students do not pass each batch without its mix once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from datastill.core.ranges import Count, Few, Share, Tiles
from datastill.core.registry import method
from datastill.methods._squeezed import Squeezed

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


@method("rded", paper="arXiv:2312.03526", family="decoupled")
@dataclass(frozen=True, kw_only=True)
class RDED(Squeezed):
    """Set together the crops of real images that a teacher is surest of; nothing is optimized."""

    factor: Tiles = 1  #: factor x factor crops in an image; 2 at 224 pixels
    candidates: Count = 300  #: real images of each class that are looked at
    crops: Few = 5  #: crops of each
    low_scale: Share = 0.08  #: smallest share of an image in a crop
    pick: Literal["lowest", "medium", "random", "stratified"] = "lowest"  #: which of the best crops, by loss

    paper_values: ClassVar[dict[str, Any]] = {"squeeze_passes": 200}
    matches_statistics: ClassVar[bool] = False

    def build(self, task: Task) -> Plan:
        """A selection: the start is the result."""
        from datastill.core.plan import Plan
        from datastill.decoders.pixels import Pixels
        from datastill.sampling.patches import Patches

        source = self.source(task)
        return Plan(
            init=Patches(source, self.factor, self.candidates, self.crops, self.low_scale, self.pick),
            decoder=Pixels(),
            prepare=(source,),
            network=task.network,
            student=lambda shared: {"labels": "teacher", "patches": self.factor},
            companions=lambda prepared: {"teacher": source.teacher(task, prepared[source.name])},
        )

    def selection_macs(self, task: Task) -> float:
        """A forward pass for every crop."""
        images = sum(min(self.candidates, int(n)) for n in task.real.counts)
        return self.crops * images * task.network.macs

    def scaled(self, task: Task, seconds: float) -> Self:
        """A shorter squeeze."""
        return self.at_pace(task, seconds, 1.0, 1.0)
