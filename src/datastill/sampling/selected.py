"""An initialization that selects real images by a rule on the features of a trained network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.plan import Block, Task
from datastill.training.feature_network import FeatureNetwork

#: (features of one class (n, d), how many, a generator seed, weights (n,) or None) -> positions (k,)
FeatureRule = Callable[[Tensor, int, int, Tensor | None], Tensor]


@dataclass(frozen=True)
class SelectedByFeatures:
    """`rule` picks `ipc` images of every class by their features."""

    name: str
    rule: FeatureRule
    unit: FeatureNetwork

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The images, and `selected`: their positions in the real set."""
        network = self.unit.load(task, context.prepared[self.unit.name])
        chosen = []
        for c in block.classes:
            members = task.real.class_index(c)
            task.real.drawable(c)  # refuses a class that weighs nothing
            features = self.unit.features(network, task, members)
            seed = context.rng.derive("selection", c)
            weights = None if task.real.weights is None else task.real.weights[members]
            chosen.append(members[self.rule(features, task.ipc, seed, weights)])
        index = torch.cat(chosen)
        return task.real.batch(index).x, {"selected": index}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": self.name}


@dataclass(frozen=True)
class SelectedByForgetting:
    """The images forgotten most (or least) often while the feature network was trained."""

    unit: FeatureNetwork
    order: str

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The images, and `selected`: their positions in the real set."""
        from datastill.sampling.selection import by_count

        counts = context.prepared[self.unit.name]["forgetting"]
        chosen = []
        for c in block.classes:
            members = task.real.class_index(c)
            task.real.drawable(c)
            generator = context.rng.generator("selection", c)
            chosen.append(members[by_count(counts[members], task.ipc, self.order, generator)])
        index = torch.cat(chosen)
        return task.real.batch(index).x, {"selected": index}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "forgetting", "order": self.order}
