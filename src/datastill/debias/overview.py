"""What weights say of a set: class by class, and the images that they take to be the crowd and the odd ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.debias.diagnosis import effective_samples

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: The part of a class that `Weighed.heaviest` speaks of.
TOP = 0.05


@dataclass(frozen=True)
class Weighed:
    """One class.

    Attributes:
        name: of the class.
        images: how many it has.
        in_effect: how many equally weighted images would vary as much, see `diagnosis.effective_samples`.
        heaviest: share of the weight that the heaviest twentieth of the images has, in [0, 1]; 0.05 where all weigh
            the same.
        conflicting: share of the weight of images that conflict with the bias, where the set knows it.
    """

    name: str
    images: int
    in_effect: float
    heaviest: float
    conflicting: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def weighed_classes(real: RealSet) -> list[Weighed]:
    """What the weights of a set do to each of its classes.

    Raises:
        InputError: the set has no weights.
    """
    weights = _weights(real)
    effective = effective_samples(weights, real.labels, real.classes)
    found = []
    for c, name in enumerate(real.class_names):
        members = real.class_index(c)
        own = weights[members] / weights[members].sum()
        top = own.sort(descending=True).values[: max(1, round(TOP * len(own)))]
        odd = None if real.bias is None else float(own[real.bias[members] != c].sum())
        found.append(Weighed(name, len(members), float(effective[c]), float(top.sum()), odd))
    return found


def crowd_and_odd(real: RealSet, count: int = 8) -> tuple[Tensor, Tensor]:
    """Positions of the lightest and of the heaviest images of every class, class by class, most extreme first.

    Args:
        count: of each kind and class; half the class at most.

    Raises:
        InputError: the set has no weights.
    """
    weights = _weights(real)
    crowd, odd = [], []
    for c in range(real.classes):
        members = real.class_index(c)
        order = members[weights[members].argsort(stable=True)]
        few = max(1, min(count, len(order) // 2))
        crowd.append(order[:few])
        odd.append(order.flip(0)[:few])
    return torch.cat(crowd), torch.cat(odd)


def _weights(real: RealSet) -> Tensor:
    if real.weights is None:
        raise InputError("The set has no weights to look at; weigh it first (debias).")
    return real.weights.double()
