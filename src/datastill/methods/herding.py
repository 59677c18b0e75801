"""Herding (Welling, Herding Dynamical Weights to Learn, ICML 2009), as a coreset of real images.

Greedily for j = 0..ipc-1: i = argmin over free i of || (j+1) mu - sum_chosen f - f_i ||, with mu the mean
feature of the class and f the features of a network trained on the whole real set.

- Needs: a network trained on the real set (5 passes; the paper recipe takes 40).
- Cost: passes * 3 * n network passes once, then O(ipc * n_c * d) per class.
- Departs: features are taken without augmentation in eval mode; a class too small is an error, never cut short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datastill.core.ranges import Count
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from torch import Tensor

    from datastill.core.plan import Plan, Task


@method("herding", paper="Welling, ICML 2009", family="coreset")
@dataclass(frozen=True, kw_only=True)
class Herding(Method):
    """Real images whose running mean of features follows the class mean."""

    feature_passes: Count = 5  #: passes over the real set to train the feature network; 40 in the paper recipe
    normalize: bool = False  #: scale features to unit length first, as in class-incremental learning

    paper_values: ClassVar[dict[str, Any]] = {"feature_passes": 40}

    def build(self, task: Task) -> Plan:
        """The initialization is the result."""
        from datastill.core.plan import Plan
        from datastill.decoders.pixels import Pixels
        from datastill.sampling.selected import SelectedByFeatures
        from datastill.sampling.selection import herding
        from datastill.training.feature_network import FeatureNetwork

        def rule(features: Tensor, k: int, seed: int, weights: Tensor | None) -> Tensor:
            if self.normalize:
                features = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
            return herding(features, k, weights)

        unit = FeatureNetwork(self.feature_passes)
        return Plan(init=SelectedByFeatures("herding", rule, unit), decoder=Pixels(), prepare=(unit,))
