"""One augmentation per class and step for both sides of a match (Zhao and Bilen, ICML 2021, arXiv:2102.08259)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from datastill.core.context import Context

if TYPE_CHECKING:
    from datastill.augment.dsa import DsaRecord


def draw_siamese(context: Context) -> DsaRecord | None:
    """One record with a row per class, or None where the plan augments nothing."""
    augment = context.plan.augment
    if augment is None:
        return None
    return augment.draw(context.task.classes, context.task.real.shape, context.generator("augment"))


def augmented(x: Tensor, y: Tensor, context: Context, record: DsaRecord | None) -> Tensor:
    """Images (n, c, h, w) of the classes y (n,), each by its class's row of the record."""
    if record is None or context.plan.augment is None:
        return x
    return context.plan.augment.apply(x, record, rows=y)
