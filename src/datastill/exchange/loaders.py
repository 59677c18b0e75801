"""A distilled set for training code of one's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datastill.augment.strategies import make_augment
from datastill.core.ranges import Count, Seed, checked
from datastill.core.rng import Rng
from datastill.store.artifact import DistilledSet

Pair = tuple[Tensor, Tensor]


@checked
def as_dataloader(
    distilled: DistilledSet,
    batch_size: Count = 256,
    *,
    augment: str = "none",
    pixels: bool = False,
    shuffle: bool = True,
    seed: Seed = 0,
) -> DataLoader[Pair]:
    """Batches of (images, labels) in a new order in every pass, augmented where that is asked for.

    Args:
        distilled: the set.
        batch_size: images of a batch.
        augment: a DSA strategy such as "color_crop_cutout", drawn for each image; "auto" takes the one that fits the
            data, "none" takes none.
        pixels: images as pixels in [0, 1] instead of numbers in the set's Space.
        shuffle: whether the order changes.
        seed: of orders and augmentations.

    Returns:
        A loader of images (b, c, h, w) float32 and labels (b,) int64, or (b, C) where they are soft.

    Raises:
        InputError: an unknown strategy, or an option out of range.
    """
    rng, shape = Rng(seed), (int(n) for n in distilled.images.shape[1:])
    c, h, w = shape
    strategy = make_augment(augment, distilled.record.data.name, (c, h, w))
    drawn = rng.generator("augment")

    def batch(items: list[Pair]) -> Pair:
        x, y = (torch.stack(part) for part in zip(*items, strict=True))
        return (x if strategy is None else strategy.apply(x, strategy.draw(len(x), (c, h, w), drawn))), y

    order = rng.generator("order")
    return DataLoader(distilled.as_dataset(pixels), batch_size, shuffle, collate_fn=batch, generator=order)
