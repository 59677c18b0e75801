"""The sides of a match of class statistics: when images must share a pass, and gradients of the synthetic side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.plan import Grads
from datastill.models import couples_samples
from datastill.objectives.siamese import augmented

if TYPE_CHECKING:
    from datastill.augment.dsa import DsaRecord
    from datastill.models.base import Network

#: From augmented images (n, c, h, w), their classes (n,) and the classes of the group, ascending, to a loss for each of
#: these.
GroupLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def share_a_pass(context: Context) -> bool:
    """Whether all images of a side must go through the network together, since a layer couples them."""
    family = context.plan.network or context.task.network
    return family.couples_samples or couples_samples(cast("Network", context.surrogate))


def coupled(context: Context) -> str:
    """Why classes are not apart, in a step or before the first; see `core.split.ByClass`."""
    family = context.plan.network or context.task.network
    found = family.couples_samples if context.surrogate is None else share_a_pass(context)
    return "a layer of the network couples the images of a batch; take one without batch statistics" if found else ""


def synthetic_side(
    context: Context,
    record: DsaRecord | None,
    joint: bool,
    loss_of: GroupLoss,
    *,
    per_image: bool = False,
    leaves: Mapping[str, Tensor] | None = None,
) -> Grads:
    """Loss per class of the block and its gradient for every synthetic image, in groups of classes.

    Each group has its own short backward pass: the same numbers as all at once in a bounded memory.

    Args:
        context: at work in a step.
        record: the augmentation, a row for each class.
        joint: all classes in one group.
        loss_of: the loss of a group.
        per_image: whether the record has a row for each image instead.
        leaves: further ones, with their graph, of which the loss has a gradient; they need `joint`.
    """
    assert context.synthetic is not None
    x, y = context.synthetic.x.detach(), context.synthetic.y.to(context.device)
    grads, named, losses = torch.zeros_like(x), dict(leaves or {}), []
    others: list[Tensor] = []
    for group in class_groups(y, len(y) if joint else context.chunk):
        part = torch.isin(y, group).nonzero().squeeze(1)
        leaf = x[part].requires_grad_()
        loss = loss_of(augmented(leaf, part if per_image else y[part], context, record), y[part], group)
        grads[part], *others = torch.autograd.grad(loss.sum(), [leaf, *named.values()])
        losses.append(loss.detach())
    return Grads(loss=torch.cat(losses), x=grads, leaves=dict(zip(named, others, strict=True)))


def class_groups(y: Tensor, limit: int) -> list[Tensor]:
    """Whole classes, as many at a time as `limit` images hold, at least one."""
    classes, counts = y.unique(return_counts=True)
    return list(classes.split(_classes_at_once(counts, limit)))


def most_in_a_group(y: Tensor, limit: int) -> int:
    """The most images that one of `class_groups` has."""
    counts = y.unique(return_counts=True)[1]
    return min(len(y), _classes_at_once(counts, limit) * int(counts.max()))


def _classes_at_once(counts: Tensor, limit: int) -> int:
    return max(1, limit // int(counts.max()))
