"""Where synthetic images start, as experts see real ones after their last epoch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.data.real import check_ipc
from datastill.sampling.clusters import spread
from datastill.sampling.inits import placed, shuffled_members
from datastill.sampling.representative import Candidates
from datastill.training.hard import predict

if TYPE_CHECKING:
    from datastill.core.context import Context
    from datastill.core.plan import Block, Task
    from datastill.data.real import RealSet
    from datastill.models.base import Network
    from datastill.surrogates.experts.store import ExpertBuffer
    from datastill.surrogates.experts.unit import ExpertsUnit


@dataclass(frozen=True)
class Finished:
    """Prepared experts after their last epoch, in one module that they share.

    Attributes:
        buffer: the experts.
        module: what they are loaded into.
    """

    buffer: ExpertBuffer
    module: Network

    @classmethod
    def of(cls, unit: ExpertsUnit, context: Context) -> Finished:
        """Those that the unit prepared.

        Raises:
            InputError: they are gone, do not fit the task, or there is none.
        """
        from datastill.surrogates.experts.sample import refuse_empty

        task = context.task
        buffer = unit.open(task, context.prepared.get(unit.name, {}))
        refuse_empty(buffer)
        return cls(buffer, (unit.network or task.network)(0).to(task.device))

    def logits(self, expert: int, x: Tensor) -> Tensor:
        """What an expert takes images (n, c, h, w) for, (n, C) on the CPU; in eval mode, without augmentation."""
        self.buffer.load(self.module, expert, self.buffer.epochs)
        return predict(self.module, x, device=next(self.module.parameters()).device).cpu()


@dataclass(frozen=True)
class ExpertClusters:
    """Real images near the centroids of their class in the logits of the first expert (AST, arXiv:2310.10541).

    There are as many clusters as images of a class, and at most `most`: of one, the image nearest to the mean of the
    class. Larger clusters give more images. (With the released code there are ten clusters of ipc // 10 images, which
    are none below ten images.)
    """

    unit: ExpertsUnit
    candidates: Candidates
    most: int = 10

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The images, and `selected`: their positions in the real set."""
        check_ipc(task.real, task.ipc)
        experts = Finished.of(self.unit, context)
        rows = {c: self._of_class(task, c, experts, context) for c in block.classes}
        return _placed(task, block, rows)

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "expert clusters", "clusters": self.most, "candidates": self.candidates.most}

    def _of_class(self, task: Task, c: int, experts: Finished, context: Context) -> Tensor:
        index, weight = self.candidates.of_class(task.real, c, context.rng.generator("start candidates", c))
        if len(index) < task.ipc:  # the others weigh nothing, or were left out
            index, weight = task.real.class_index(c), None
        logits = experts.logits(experts.buffer.experts[0], task.real.batch(index).x)
        generator = context.rng.generator("start clusters", c)
        return index[spread(logits, min(task.ipc, self.most), task.ipc, generator, weight)]


@dataclass(frozen=True)
class CorrectReal:
    """Random real images that an expert recognizes (DATM: Guo et al., ICLR 2024, arXiv:2310.05773).

    Those that the first expert takes for their class, in the order of the seed's selection; where they are too few, the
    next experts are asked about the others. Where no expert knows enough, random images fill up, with a warning.
    """

    unit: ExpertsUnit
    tries: int = 10  #: experts that are asked at most

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The images, and `selected`: their positions in the real set."""
        check_ipc(task.real, task.ipc)
        experts = Finished.of(self.unit, context)
        asked = experts.buffer.experts[: self.tries]
        found = {c: _recognized(task.real, c, task.ipc, task.seed, experts, asked) for c in block.classes}
        few = [task.real.class_names[c] for c, (_, right) in found.items() if right < task.ipc]
        if few:
            warnings.warn(
                f"Experts recognize fewer than {task.ipc} images of {len(few)} classes ({', '.join(few[:5])}"
                f"{', ...' if len(few) > 5 else ''}): random ones fill up; train experts for longer.",
                stacklevel=2,
            )
        rows = {c: index for c, (index, _) in found.items()}
        return _placed(task, block, rows)

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "correct", "experts": self.tries}


def _placed(task: Task, block: Block, rows: Mapping[int, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Images of a block, and their positions, from the positions (ipc,) for each class."""
    index = placed(block, task.ipc, rows)
    return task.real.batch(index).x, {"selected": index}


def _recognized(
    real: RealSet, c: int, ipc: int, seed: int, experts: Finished, asked: Sequence[int]
) -> tuple[Tensor, int]:
    """Positions of ipc distinct images of a class, those first that an expert is right about, and how many."""
    left, found = shuffled_members(real, c, seed), torch.empty(0, dtype=torch.int64)
    for expert in asked:
        wrong = []
        for some in left.split(max(16, 2 * ipc)):
            if len(found) < ipc:
                right = experts.logits(expert, real.batch(some).x).argmax(1) == c
                found, some = torch.cat([found, some[right]]), some[~right]
            wrong.append(some)
        left = torch.cat(wrong) if wrong else left
    return torch.cat([found, left])[:ipc], len(found)
