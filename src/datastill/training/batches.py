"""What a network is trained on: images, labels and weights in batches, in a seeded order, augmented and mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.augment import mix
from datastill.augment.dsa import Dsa, DsaRecord
from datastill.core.errors import InputError
from datastill.core.rng import Rng

if TYPE_CHECKING:
    from datastill.training.hard import Schedule

#: Images: a tensor (n, c, h, w), or a function from positions (b,) int64 on the CPU to images (b, c, h, w).
Images = Tensor | Callable[[Tensor], Tensor]


def batch_bounds(count: int, batch: int) -> list[int]:
    """Where the batches of `count` images begin, and where the last one ends.

    A last batch of a single image is merged into the one before it, which then has batch + 1: batch norm has no
    statistics of one value.

    Raises:
        InputError: no images, or an empty batch.
    """
    if count < 1 or batch < 1:
        raise InputError(f"There are {count} images for batches of {batch}; both must be at least 1.")
    bounds = [*range(0, count, batch), count]
    if len(bounds) > 2 and bounds[-1] - bounds[-2] == 1 and batch > 1:
        del bounds[-2]
    return bounds


def parts(count: int, batch: int, couples: bool) -> list[tuple[int, int]]:
    """Start and end of each batch; the last, partial one is kept, but that of one image where layers couple samples."""
    bounds = batch_bounds(count, batch) if couples else [*range(0, count, batch), count]
    return list(pairwise(bounds))


class TrainingData:
    """Images, labels and weights, dealt out in the seeded order, augmented and mixed.

    Attributes:
        classes: number of logits; needed for CutMix, which turns class positions into probabilities.
        couples: whether layers of the network couple samples, so that no batch may be a single image.

    Raises:
        InputError: images and labels differ in number, or there are none.
    """

    def __init__(self, x: Images, y: Tensor, weight: Tensor | None, device: torch.device) -> None:
        if len(y) < 1:
            raise InputError("There are no images to train on.")
        if isinstance(x, Tensor) and len(x) != len(y):
            raise InputError(f"There are {len(x)} images but {len(y)} labels.")
        if weight is not None and weight.shape != (len(y),):
            raise InputError(f"There are {len(y)} images but weights of shape {tuple(weight.shape)}.")
        self.x = x.to(device) if isinstance(x, Tensor) else x
        self.y = y.to(device)
        self.weight = None if weight is None else weight.to(device)
        self.device = device
        self.classes = 0
        self.couples = False

    def batches(
        self, schedule: Schedule, rngs: list[Rng], p: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """The batches of pass p for K networks side by side, each with its own order, augmentation and mixing.

        Yields:
            positions (K*b,) on the CPU, images (K*b, c, h, w), targets (K*b, ...), weights (K*b,) or None;
            the first b are the first network's.
        """
        orders = [torch.randperm(len(self.y), generator=rng.generator("order", p)) for rng in rngs]
        dsa = Dsa(schedule.augment, mode=schedule.augment_mode)
        for b, (start, stop) in enumerate(parts(len(self.y), schedule.batch, self.couples)):
            index = torch.cat([order[start:stop] for order in orders])
            here = index.to(self.device)
            images = self.x[here] if isinstance(self.x, Tensor) else self.x(index).to(self.device)
            target = self.y[here]
            if dsa.ops:
                channels, height, width = images.shape[1:]
                shape, rows = (channels, height, width), len(index) // len(rngs)
                draws = [dsa.draw(rows, shape, rng.generator("augment", p, b), one_op=True) for rng in rngs]
                images = dsa.apply(images, DsaRecord.concatenate(draws))
            if schedule.cutmix:
                images, target = self._mixed(images, target, schedule, [rng.generator("cutmix", p, b) for rng in rngs])
            yield index, images, target, None if self.weight is None else self.weight[here]

    def _mixed(
        self, images: Tensor, target: Tensor, schedule: Schedule, generators: list[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Images (K*b, ...) and probabilities (K*b, C), each network's with a draw of its own."""
        cutmix = mix.CutMix(schedule.cutmix)
        rows, (height, width) = len(images) // len(generators), images.shape[-2:]
        records = [cutmix.draw(rows, (height, width), generator) for generator in generators]
        mixed = [mix.apply(x, r) for x, r in zip(images.split(rows), records, strict=True)]
        targets = [
            mix.mixed_targets(y, r, self.classes, images.dtype)
            for y, r in zip(target.split(rows), records, strict=True)
        ]
        return torch.cat(mixed), torch.cat(targets)
