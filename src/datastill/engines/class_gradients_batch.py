"""Images sorted by class and what each weighs in the mean of its class, as every class-gradient engine takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError

ClassGradients = dict[str, Tensor]  #: (K, *parameter.shape) by parameter name


#: Why an engine other than "loop" is refused.
COUPLED = "it couples samples, as batch norm does in training mode"


class Unsupported(InputError):
    """An engine cannot take this network; the text says why."""

    def __init__(self, engine: str, why: str) -> None:
        super().__init__(f"The {engine} engine cannot take this network: {why}; use engine='auto'.")


@dataclass(frozen=True)
class ClassBatch:
    """Images of K classes, class after class.

    Attributes:
        x: images, (n, ...).
        y: class positions, (n,) int64, the targets of the cross-entropy.
        share: what each image weighs in the mean of its class, (n,); sums to 1 in every class that weighs something.
        counts: images of each of the K classes; their sum is n.
    """

    x: Tensor
    y: Tensor
    share: Tensor
    counts: list[int]

    def classes(self) -> Iterator[ClassBatch]:
        """The K classes one after the other, absent ones too."""
        parts = zip(*(t.split(self.counts) for t in (self.x, self.y, self.share)), self.counts, strict=True)
        for x, y, share, count in parts:
            yield ClassBatch(x, y, share, [count])

    def pieces(self, size: int) -> Iterator[tuple[int, ClassBatch]]:
        """At most `size` images at a time: the position of the first class that a piece holds, and the piece."""
        ends = torch.tensor([0, *self.counts]).cumsum(0)
        for start in range(0, len(self.y), size):
            held = ends.clamp(start, start + size).diff()
            present = held.nonzero().squeeze(1)
            first, last = int(present[0]), int(present[-1])
            here = slice(start, start + size)
            yield first, ClassBatch(self.x[here], self.y[here], self.share[here], held[first : last + 1].tolist())


def sort_by_class(x: Tensor, y: Tensor, classes: Sequence[int] | Tensor, weight: Tensor | None) -> ClassBatch:
    """The images of the given classes, sorted by their position in `classes`; others are left out.

    Raises:
        InputError: labels are not one class position per image; `classes` is empty or names one twice; there is not
            one weight per image.
    """
    wanted = torch.as_tensor(classes, dtype=torch.int64, device=y.device)
    _check(x, y, wanted, weight)
    ascending, back = wanted.sort()
    at = torch.searchsorted(ascending, y).clamp_max(len(wanted) - 1)
    position = torch.where(ascending[at] == y, back[at], len(wanted))  # (n,), K for images of other classes
    counts = torch.bincount(position, minlength=len(wanted) + 1)[: len(wanted)]
    order = position.argsort(stable=True)[: int(counts.sum())]
    position = position[order].to(x.device)
    if not torch.equal(order, torch.arange(len(x), device=order.device)):
        x, y = x[order.to(x.device)], y[order]
        weight = None if weight is None else weight[order.to(weight.device)]
    share = _shares(position, counts.to(x.device), weight, torch.promote_types(x.dtype, torch.float32))
    return ClassBatch(x, y.to(x.device), share, counts.tolist())


def zero_gradients(network: nn.Module, names: Sequence[str], classes: int) -> ClassGradients:
    """(K, *parameter.shape) of zeros for the named parameters."""
    parameters = dict(network.named_parameters())
    return {name: parameters[name].detach().new_zeros(classes, *parameters[name].shape) for name in names}


def differentiate(loss: Tensor, leaves: Sequence[Tensor], create_graph: bool) -> tuple[Tensor, ...]:
    """d loss / d leaf for every leaf, zero for one that the loss does not depend on."""
    if not leaves:
        return ()
    return torch.autograd.grad(loss, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def _shares(position: Tensor, counts: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """w_i over the sum of w in the class of i; position (n,), counts (K,) to (n,)."""
    if weight is None:
        return counts[position].to(dtype).reciprocal()
    weight = weight.to(position.device, dtype)
    total = weight.new_zeros(len(counts)).index_add(0, position, weight)
    return weight / total[position].clamp_min(torch.finfo(dtype).tiny)


def _check(x: Tensor, y: Tensor, wanted: Tensor, weight: Tensor | None) -> None:
    if y.ndim != 1 or y.is_floating_point() or len(y) != len(x):
        raise InputError(
            f"Class gradients need one class position per image, not labels of shape {tuple(y.shape)} "
            f"({y.dtype}) for {len(x)} images."
        )
    if wanted.ndim != 1 or len(wanted) == 0 or len(wanted.unique()) < len(wanted):
        raise InputError("Class gradients need at least one class, and every class once.")
    if weight is not None and weight.shape != y.shape:
        raise InputError(f"There are weights of shape {tuple(weight.shape)} for {len(y)} images.")
