"""K-means prototypes: the real image nearest to each of ipc centroids of its class's features.

min_{centers} sum_i min_k || f_i - m_k ||^2, then for each center the nearest free sample.

- Needs: a network trained on the real set (5 passes; the paper recipe takes 40).
- Cost: passes * 3 * n network passes once, then Lloyd's iterations per class (scikit-learn).
- Departs: two centers with one nearest sample take distinct samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datastill.core.ranges import Count
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


@method("kmeans", paper="Lloyd, 1982", family="coreset")
@dataclass(frozen=True, kw_only=True)
class KMeans(Method):
    """Real images nearest to the centroids of their class's features."""

    feature_passes: Count = 5  #: passes over the real set to train the feature network; 40 in the paper recipe

    paper_values: ClassVar[dict[str, Any]] = {"feature_passes": 40}

    def build(self, task: Task) -> Plan:
        """The initialization is the result."""
        from datastill.core.plan import Plan
        from datastill.decoders.pixels import Pixels
        from datastill.sampling.selected import SelectedByFeatures
        from datastill.sampling.selection import k_means
        from datastill.training.feature_network import FeatureNetwork

        unit = FeatureNetwork(self.feature_passes)
        return Plan(init=SelectedByFeatures("kmeans", k_means, unit), decoder=Pixels(), prepare=(unit,))
