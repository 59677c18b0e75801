"""Forgetting events (Toneva et al., ICLR 2019, arXiv:1812.05159), as a coreset of real images.

count_i = how often sample i was right at its last visit and is wrong now, while a network trains once on the
real set; infinite for a sample that was never right. Take the largest counts of each class.

- Needs: one training run on the real set (5 passes; the paper recipe takes 40).
- Cost: passes * 3 * n network passes once.
- Departs: ties are broken at random from the seed; `order="least"` is offered, since hardest first harms at
  few images per class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datastill.core.ranges import Count
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


@method("forgetting", paper="arXiv:1812.05159", family="coreset")
@dataclass(frozen=True, kw_only=True)
class Forgetting(Method):
    """Real images that a network in training forgets most often."""

    feature_passes: Count = 5  #: passes over the real set over which events are counted; 40 in the paper recipe
    order: Literal["most", "least"] = "most"  #: take the samples forgotten "most" (the paper) or "least" often

    paper_values: ClassVar[dict[str, Any]] = {"feature_passes": 40}

    def build(self, task: Task) -> Plan:
        """The initialization is the result."""
        from datastill.core.plan import Plan
        from datastill.decoders.pixels import Pixels
        from datastill.sampling.selected import SelectedByForgetting
        from datastill.training.feature_network import FeatureNetwork

        unit = FeatureNetwork(self.feature_passes)
        return Plan(init=SelectedByForgetting(unit, self.order), decoder=Pixels(), prepare=(unit,))
