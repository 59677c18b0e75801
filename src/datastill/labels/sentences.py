"""Labels of pairs: the vector of a sentence for each image, learned or as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Codes
from datastill.labels.learned import LEAF
from datastill.sampling.inits import random_indices


@dataclass(frozen=True)
class SentenceVectors:
    """The leaf `labels`, (n, d) float32: vectors of sentences in the space of the set's text encoder.

    They begin as the vectors of the captions of the images that the init selected, or, where it selected none, of
    random pairs; they are learned where the plan has a rule for `labels`.
    """

    kind: ClassVar[str] = "pairs"

    def leaves(self, context: Context, images: Tensor, extra: Mapping[str, Tensor]) -> Codes:
        """See `LearnedLabels`.

        Raises:
            InputError: the real set is not one of pairs.
        """
        task = context.task
        if task.real.captions is None:
            raise InputError(f"{task.real.name} has no captions; a set of pairs is needed (`load_pairs`).")
        index = extra.get("selected", random_indices(task.real, task.ipc, task.seed)[context.block.index])
        return {LEAF: task.real.captions.vectors[index.cpu()].to(images.device).clone()}

    def during(self, context: Context) -> Tensor:
        """The leaf, with its graph where there is one."""
        return context.codes[LEAF]

    def final(self, context: Context) -> Tensor:
        """The leaf as it is."""
        return context.codes[LEAF].detach()
