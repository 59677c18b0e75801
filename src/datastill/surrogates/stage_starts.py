"""Where images of stage matching start: mosaics of real images whose features are near those of their class.

A random start is far from what is matched; greedy herding (Welling, ICML 2009) picks the tiles whose mean feature on
the same networks is the class's. It is a selection of real images: nothing is learned from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.threads import threads_for
from datastill.data.real import check_ipc
from datastill.sampling.inits import mosaic, placed
from datastill.sampling.selection import herding
from datastill.surrogates.stage_statistics import features_in_chunks
from datastill.surrogates.stages import Stage, open_experts

if TYPE_CHECKING:
    from datastill.core.context import Context
    from datastill.core.plan import Block, Task
    from datastill.models.base import Network
    from datastill.surrogates.experts import ExpertBuffer, ExpertsUnit
    from datastill.surrogates.stage_statistics import StageStatistics


@dataclass(frozen=True)
class HerdedTiles:
    """Tiles of real images, as they are seen when enlarged, herded to the class means of some stages.

    Args:
        unit: prepared the experts.
        epochs: of their snapshots.
        kept: the class means on these; None takes those of the candidates themselves.
        positions: which of the snapshots to look at; features of all experts stand beside each other.
        factor: tiles to a side; 1 picks whole images.
        candidates: random real images of a class to pick from.
    """

    unit: ExpertsUnit
    epochs: tuple[int, ...]
    kept: StageStatistics | None
    positions: tuple[int, ...]
    factor: int
    candidates: int = 1000

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The mosaics, and `mixed`: the position in the real set of every tile, (n, factor^2)."""
        check_ipc(task.real, task.ipc)
        factory = self.unit.network or task.network
        buffer = open_experts(self.unit, task, context.prepared[self.unit.name], self.epochs)
        network = factory(0).to(task.device).requires_grad_(False).eval()
        with threads_for(factory.macs), torch.no_grad():
            found = {}
            for done, c in enumerate(block.classes):
                found[c] = self._of_class(c, buffer, network, context)
                task.progress("choosing the start", done + 1, len(block.classes), {})
        index = placed(block, task.ipc, found)
        return mosaic(task.real, index, self.factor), {"mixed": index}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {
            "init": "herded",
            "factor": self.factor,
            "positions": list(self.positions),
            "kept": self.kept is not None,
            "candidates": self.candidates,
        }

    def macs(self, task: Task) -> float:
        """One pass for each candidate and snapshot that is looked at."""
        most = max(self.candidates, task.ipc * self.factor**2)
        images = sum(min(most, int(n)) for n in task.real.counts)
        return float(self.unit.count * len(self.positions) * images * (self.unit.network or task.network).macs)

    def _of_class(self, c: int, buffer: ExpertBuffer, network: Network, context: Context) -> Tensor:
        """Positions of the tiles of a class, (ipc, factor^2): the first of every image are chosen first."""
        task, tiles = context.task, self.factor**2
        members = task.real.class_index(c)
        order = torch.randperm(len(members), generator=context.rng.generator("start candidates", c))
        index = members[order[: max(self.candidates, task.ipc * tiles)]]
        images = self._seen(index, task).to(task.device)
        features, means = [], []
        for k, expert in enumerate(buffer.experts):
            for s in self.positions:
                buffer.load(network, expert, self.epochs[s])
                found = features_in_chunks(network, images, task, (self.unit.network or task.network).macs)
                mean, variance = self._mean(c, found, Stage(network, None, k, s), context)
                features.append(found * variance.rsqrt())
                means.append(mean * variance.rsqrt())
        chosen = herding(torch.cat(features, 1), min(len(index), task.ipc * tiles), mean=torch.cat(means))
        cycle = chosen[torch.arange(task.ipc * tiles) % len(chosen)]
        return index[cycle].view(tiles, task.ipc).T

    def _mean(self, c: int, found: Tensor, stage: Stage, context: Context) -> tuple[Tensor, Tensor]:
        """What a class is herded to on a stage, and the variance within classes, (d,) each."""
        if self.kept is None:
            return found.mean(0), found.var(0, unbiased=False).clamp_min(1e-6)
        at = self.kept.of(context.prepared, stage)
        assert at.variance is not None
        return at.values[c, : found.shape[1]], at.variance

    def _seen(self, index: Tensor, task: Task) -> Tensor:
        """Real images as tiles that are enlarged again."""
        images = task.real.batch(index).x
        if self.factor == 1:
            return images
        size = tuple(-(-side // self.factor) for side in images.shape[2:])
        small = F.interpolate(images, size=size, mode="nearest")
        return F.interpolate(small, size=images.shape[2:], mode="bilinear")
