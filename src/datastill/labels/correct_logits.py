"""Where learned labels start: at what experts make of the images (DATM: Guo et al., ICLR 2024, arXiv:2310.05773)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.surrogates.experts.starts import Finished

if TYPE_CHECKING:
    from datastill.surrogates.experts import ExpertsUnit

#: How far the logit of the class stands above all others where no expert is right.
_MARGIN = 1e-3


@dataclass(frozen=True)
class CorrectLogits:
    """Where learned logits start: the mean of those experts, after their last epoch, that are right about an image.

    (With the released code an image about which none is right has the label 0/0.)
    """

    unit: ExpertsUnit

    def __call__(self, context: Context, images: Tensor) -> Tensor:
        """Logits (n, C) of images (n, c, h, w)."""
        experts = Finished.of(self.unit, context)
        every = torch.stack([experts.logits(expert, images) for expert in experts.buffer.experts])
        return mean_of_correct(every, context.block.y)


def mean_of_correct(logits: Tensor, y: Tensor) -> Tensor:
    """Mean logits (n, C) of those of E experts, (E, n, C), whose largest is that of the class, y (n,).

    Where none is right it is the mean of all, with the least added to the class that makes it the largest.
    """
    right = (logits.argmax(2) == y).to(logits.dtype)[..., None]
    mean = (logits * right).sum(0) / right.sum(0).clamp_min(1)
    own = torch.nn.functional.one_hot(y, logits.shape[2]).bool()
    raised = logits.mean(0)
    raised[own] = torch.maximum(raised[own], raised.masked_fill(own, -torch.inf).amax(1) + _MARGIN)
    return torch.where(right.sum(0) > 0, mean, raised)
