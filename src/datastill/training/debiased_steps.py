"""What the two ways of de-biased training share: numbers checked, labels checked, batches for so many steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.training.batches import TrainingData
from datastill.training.hard import Images, Schedule


def steps_for(n: int, batch: int) -> int:
    """Steps on n images where none are asked for: 20 passes, and 2,000 at least."""
    return max(2_000, 20 * math.ceil(n / batch))


def batches(
    x: Images, y: Tensor, batch: int, augment: str, rng: Rng, device: torch.device, steps: int, couples: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`steps` batches from reshuffled passes: positions (b,) on the CPU, images (b, c, h, w), class positions (b,).

    Args:
        couples: see `TrainingData`.
    """
    data, schedule = TrainingData(x, y, None, device), Schedule(passes=1, batch=batch, augment=augment)
    data.couples = couples
    done, p = 0, 0
    while done < steps:
        for index, images, target, _ in data.batches(schedule, [rng], p):
            if done == steps:
                return
            yield index, images, target
            done += 1
        p += 1


def hard_labels(y: Tensor, classes: int) -> Tensor:
    """The labels, if they are class positions.

    Raises:
        InputError: they are probabilities, or out of range, or there are none.
    """
    if y.ndim != 1 or y.is_floating_point():
        raise InputError("De-biased training compares samples by class: give one class position per image.")
    if not len(y) or not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise InputError(f"Class positions must lie in 0..{classes - 1}, and there must be some; check the labels.")
    return y
