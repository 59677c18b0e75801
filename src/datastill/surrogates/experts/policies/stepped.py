"""An epoch whose steps are a policy's own: the same order, augmentation and dropout as `training.hard.train` has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datastill.core.rng import isolated
from datastill.models import couples_samples
from datastill.surrogates.experts.policies import Epoch, TrainingSet
from datastill.surrogates.experts.policies.sgd import images_of
from datastill.training.batches import TrainingData
from datastill.training.hard import LossWatch, Schedule


@dataclass(frozen=True)
class StepBatch:
    """What a step trains on.

    Attributes:
        images: (b, c, h, w), augmented.
        target: class positions (b,).
        weight: (b,), or None.
        plain: gives the same images as they are without augmentation.
        index: positions (b,) in the data, on the CPU.
    """

    images: Tensor
    target: Tensor
    weight: Tensor | None
    plain: Callable[[], Tensor]
    index: Tensor


#: Takes one step; the loss of the batch, 0-dim, and the logits (b, C) before it, both detached.
Step = Callable[[StepBatch], tuple[Tensor, Tensor]]


def stepped_epoch(
    network: nn.Module, data: TrainingSet, schedule: Schedule, epoch: Epoch, part: float, step: Step
) -> float:
    """Train a network in place for an epoch, step by step; its mean loss. Arguments as for `sgd.trained_epoch`."""
    index, x = images_of(data, epoch, part)
    weight = None if data.weight is None else data.weight[index]
    training = TrainingData(x, data.y[index], weight, data.device)
    training.couples = couples_samples(network)
    network.to(data.device).train()
    total, watch = torch.zeros((), device=data.device), LossWatch("epoch")
    with isolated(epoch.rng.derive("dropout")):
        for rows, images, target, w in training.batches(schedule, [epoch.rng], 0):
            loss, logits = step(StepBatch(images, target, w, lambda rows=rows: _plain(training, rows), index[rows]))  # type: ignore[misc]
            total = total + loss * (len(rows) / len(index))
            epoch.on_batch(index[rows], logits)
    watch.add(total, steps=-(-len(index) // schedule.batch))
    return float(watch.finish()[0])


def _plain(training: TrainingData, rows: Tensor) -> Tensor:
    if isinstance(training.x, Tensor):
        return training.x[rows.to(training.device)]
    return training.x(rows).to(training.device)
