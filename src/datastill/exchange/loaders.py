"""A distilled set for training code of one's own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datastill.augment.strategies import make_augment
from datastill.core.errors import InputError
from datastill.core.ranges import Count, Seed, checked
from datastill.core.rng import Rng
from datastill.evaluation.soft import BANK
from datastill.labels.bank import LabelBank
from datastill.store.artifact import DistilledSet

Pair = tuple[Tensor, Tensor]


@checked
def as_dataloader(
    distilled: DistilledSet,
    batch_size: Count = 256,
    *,
    labels: Literal["set", "bank"] = "set",
    augment: str = "none",
    pixels: bool = False,
    shuffle: bool = True,
    seed: Seed = 0,
) -> DataLoader[Pair]:
    """Batches of (images, labels) in a new order in every pass, augmented where that is asked for.

    Args:
        distilled: the set.
        batch_size: images of a batch.
        labels: "set" takes those of the set; "bank" replays the label bank that `datastill relabel` has stored beside
            it: views as they were augmented for the teacher, and its logits. Batches are the bank's then, so nothing
            else can be chosen but their order.
        augment: a DSA strategy such as "color_crop_cutout", drawn for each image; "auto" takes the one that fits the
            data, "none" takes none.
        pixels: images as pixels in [0, 1] instead of numbers in the set's Space.
        shuffle: whether the order changes.
        seed: of orders and augmentations.

    Returns:
        A loader of images (b, c, h, w) float32 and labels (b,) int64, or (b, C) where they are soft: probabilities, or
        the logits of a bank, which a softmax at the temperature of training makes probabilities.

    Raises:
        InputError: an unknown strategy, an option out of range, or a bank that is not there.
    """
    if labels == "bank":
        if (batch_size, augment, pixels) != (256, "none", False):
            raise InputError("A bank's batches are as they were labeled; leave out batch_size, augment and pixels.")
        return _replayed(distilled, shuffle, Rng(seed))
    rng, shape = Rng(seed), (int(n) for n in distilled.images.shape[1:])
    c, h, w = shape
    strategy = make_augment(augment, distilled.record.data.name, (c, h, w))
    drawn = rng.generator("augment")

    def batch(items: list[Pair]) -> Pair:
        x, y = (torch.stack(part) for part in zip(*items, strict=True))
        return (x if strategy is None else strategy.apply(x, strategy.draw(len(x), (c, h, w), drawn))), y

    order = rng.generator("order")
    return DataLoader(distilled.as_dataset(pixels), batch_size, shuffle, collate_fn=batch, generator=order)


def _replayed(distilled: DistilledSet, shuffle: bool, rng: Rng) -> DataLoader[Pair]:
    """The batches of the bank beside a set, all epochs once in a pass."""
    if distilled.folder is None or not (distilled.folder / BANK).is_dir():
        where = distilled.folder or "the set's folder, once it is saved"
        raise InputError(f"There is no label bank beside this set; `datastill relabel` makes one in {where}.")
    batches: Any = LabelBank.open(distilled.folder / BANK).dataset(distilled.images)
    generator = rng.generator("order")
    return DataLoader(batches, batch_size=None, shuffle=shuffle, collate_fn=lambda item: item[1:], generator=generator)
