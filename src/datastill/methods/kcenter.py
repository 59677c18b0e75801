"""K-Center greedy (Sener and Savarese, ICLR 2018, arXiv:1708.00489), as a coreset of real images.

Start at the sample nearest to the class mean, then farthest first: i = argmax_i min_{j chosen} || f_i - f_j ||,
within twice the best covering radius.

- Needs: a network trained on the real set (5 passes; the paper recipe takes 40).
- Cost: passes * 3 * n network passes once, then O(ipc * n_c * d) per class.
- Departs: nothing; it seeks outliers by construction, hence poor at few images per class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datastill.core.ranges import Count
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


@method("kcenter", paper="arXiv:1708.00489", family="coreset")
@dataclass(frozen=True, kw_only=True)
class KCenter(Method):
    """Real images that cover the features of their class, farthest first."""

    feature_passes: Count = 5  #: passes over the real set to train the feature network; 40 in the paper recipe

    paper_values: ClassVar[dict[str, Any]] = {"feature_passes": 40}

    def build(self, task: Task) -> Plan:
        """The initialization is the result."""
        from datastill.core.plan import Plan
        from datastill.decoders.pixels import Pixels
        from datastill.sampling.selected import SelectedByFeatures
        from datastill.sampling.selection import k_center
        from datastill.training.feature_network import FeatureNetwork

        unit = FeatureNetwork(self.feature_passes)
        init = SelectedByFeatures("kcenter", lambda features, k, seed, weights: k_center(features, k), unit)
        return Plan(init=init, decoder=Pixels(), prepare=(unit,))
