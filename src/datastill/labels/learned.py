"""Labels that are learned with the images: a leaf with a row for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Codes
from datastill.training.regression import centered

#: The name of the leaf: of its update rule in a plan, and of its gradient in `Grads.leaves`.
LEAF = "labels"


@dataclass(frozen=True)
class Learned:
    """The leaf `labels`, (n, C) float32, which is the label while synthesizing and in the end.

    Its gradient comes from autograd, through `Synthetic.y`, or from `Grads.leaves["labels"]`; it moves by the plan's
    rule `update["labels"]`. The values are no probabilities: the artifact says what they are by `kind`.

    Attributes:
        kind: "regression", targets of a squared error, which begin as centered one-hot rows; or "logits", whose softmax
            is trained on.
        scale: of the centered one-hot rows at the start.
        start: gives the rows at the start, (n, C), from the context and the images of the init; None takes the
            centered one-hot rows.
    """

    kind: Literal["regression", "logits"] = "regression"
    scale: float = 1.0
    start: Callable[[Context, Tensor], Tensor] | None = None

    def leaves(self, context: Context, images: Tensor, extra: Mapping[str, Tensor]) -> Codes:
        """See `LearnedLabels`.

        Raises:
            InputError: `start` gives another shape.
        """
        y, classes = context.block.y, context.task.classes
        if self.start is None:
            return {LEAF: self.scale * centered(y, classes).to(images.device)}
        rows = self.start(context, images).detach().to(images.device, torch.float32)
        if rows.shape != (len(y), classes):
            raise InputError(f"Learned labels start as {len(y)} rows of {classes} numbers, not as {list(rows.shape)}.")
        return {LEAF: rows.clone()}

    def during(self, context: Context) -> Tensor:
        """The leaf, with its graph where there is one."""
        return context.codes[LEAF]

    def final(self, context: Context) -> Tensor:
        """The leaf as it is."""
        return context.codes[LEAF].detach()
