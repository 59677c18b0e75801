"""Soft labels that experts give (TESLA: Cui et al., ICML 2023, arXiv:2211.10586)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.surrogates.experts import Experts, Segment
from datastill.training.hard import predict

if TYPE_CHECKING:
    from collections.abc import Sequence


class ExpertLabels:
    """In each step what the expert at the end of the segment takes the synthetic images for; in the end a mean.

    Probabilities (n, C) of a network in eval mode on images without augmentation. They carry no gradient and stay the
    same for all student steps of a segment. (With the released code the final labels are those of whichever expert came
    last.)

    Args:
        experts: the plan's surrogates.
        count: the final labels are the mean over so many experts, the first of the buffer, after the last epoch
            that is ever a target.

    Raises:
        InputError: no experts to average over.
    """

    kind = "probabilities"

    def __init__(self, experts: Experts, count: int = 10) -> None:
        if count < 1:
            raise InputError(f"Final labels are a mean over at least one expert, not {count}.")
        self.experts, self.count = experts, count
        self._network: nn.Module | None = None

    def during(self, context: Context) -> Tensor:
        """Probabilities by the target of this step's segment."""
        segment = context.surrogate
        assert isinstance(segment, Segment)
        return self._mean(context, [segment.expert], segment.epoch + self.experts.span)

    def final(self, context: Context) -> Tensor:
        """The mean over the experts that `describe` names."""
        return self._mean(context, self._last_experts(), self.experts.last_epoch)

    def describe(self) -> dict[str, Any]:
        """Whose labels the final ones are, for the manifest; known once a run has begun."""
        return {"experts": list(self._last_experts()), "epoch": self.experts.last_epoch}

    def _last_experts(self) -> Sequence[int]:
        return self.experts.buffer.experts[: self.count]

    def _mean(self, context: Context, experts: Sequence[int], epoch: int) -> Tensor:
        y = context.block.y
        x = context.plan.decoder.decode(context.codes, y).x.detach()
        if len(x) != len(y):
            raise InputError("Soft labels need a decoder that gives one image for each stored one.")
        if self._network is None:
            self._network = copy.deepcopy(self.experts.network)
        total = torch.zeros(())
        for expert in experts:
            self.experts.buffer.load(self._network, expert, epoch)
            total = total.to(x.device) + predict(self._network, x, device=context.device).softmax(1)
        return total / len(experts)
