"""What weights do to a set: how many samples are left in effect, and what share of the mass a bias does not explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.debias.kde import per_class
from datastill.store.schema import Record, Seconds, Whole


class KeptRecord(Record):
    """What is kept beside weights of every way; each adds its own."""

    seed: Whole = 0
    seconds: Seconds = 0.0


#: Fewer samples in effect than this, in a class that has them, is a collapse.
FEWEST = 10
#: A class that keeps more than this share of its samples in effect is weighted all but uniformly.
UNIFORM = 0.95


def effective_samples(weights: Tensor, y: Tensor, classes: int) -> Tensor:
    """(sum w)^2 / sum w^2 of every class: how many equally weighted samples would vary as much.

    Args:
        weights: (n,), not negative.
        y: class positions, (n,).
        classes: C.

    Returns:
        (C,) float64 in [1, n_c]; 0 for a class that is empty or weighs nothing.
    """
    weights = weights.double()
    total = weights.new_zeros(classes).index_add(0, y, weights)
    squares = weights.new_zeros(classes).index_add(0, y, weights.square())
    return torch.where(squares > 0, total.square() / squares.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def conflict_mass(weights: Tensor | None, y: Tensor, bias: Tensor) -> float:
    """The share of a class's weight that its bias-conflicting samples have, averaged over classes.

    It is the conflict ratio without effect, and 1 - 1/B where every one of B bias values weighs the same. Read it with
    the effective sample size: weights on a few conflicting samples have a large mass too.

    Args:
        weights: (n,), not negative; None for equal weights.
        y: class positions, (n,).
        bias: bias values, (n,); a sample conflicts where bias and class position differ.

    Raises:
        InputError: the shapes do not agree.
    """
    check_bias(bias, y)
    weights = torch.ones(len(y), dtype=torch.float64) if weights is None else weights.double()
    share = per_class(weights, y)
    present = torch.bincount(y, weights=share) > 0
    mass = torch.bincount(y, weights=share * (bias != y), minlength=len(present))
    return float(mass[present].mean()) if bool(present.any()) else math.nan


def check_bias(bias: Tensor, y: Tensor) -> None:
    """Refuse bias values that are not one whole number of at least 0 per label."""
    if bias.shape != y.shape or bias.is_floating_point() or bool((bias < 0).any()):
        raise InputError(
            f"Bias values of shape {tuple(bias.shape)} ({bias.dtype}) do not fit labels of shape {tuple(y.shape)}; "
            "give one whole number of at least 0 per image."
        )


#: What weights that do nothing come from, and what to do where they rest on too few images: by density, by bias labels.
OF_DENSITY = (
    "the variance is far too small or too large for this embedding, or nothing in it crowds together",
    "lower the power (kde:power=1), or raise the variance (kde:variance=0.05)",
)
OF_LABELS = ("no class has images of several bias values", "bring more images that do not follow the bias")


def describe_weights(
    weights: Tensor, y: Tensor, names: Sequence[str], advice: tuple[str, str] = OF_DENSITY
) -> dict[str, Any]:
    """Effective sample sizes and what to be warned of; JSON-able.

    Args:
        weights: (n,), not negative.
        y: class positions, (n,).
        names: of the classes.
        advice: what weights that do nothing come from, and what to do about those that rest on a few images.

    Returns:
        `effective_samples` per class, `effective_share`, their mean share of the class, `largest_share`, the largest
        share of its class that one sample weighs, and `warnings`, sentences.
    """
    effective, counts = effective_samples(weights, y, len(names)), torch.bincount(y, minlength=len(names))
    present = counts > 0
    largest = float(per_class(weights.double(), y).max()) if len(y) else math.nan
    return {
        "effective_samples": [round(v, 2) for v in effective.tolist()],
        "effective_share": float((effective[present] / counts[present]).mean()) if bool(present.any()) else math.nan,
        "largest_share": largest,
        "warnings": warn_of(effective, counts, names, advice),
    }


def warn_of(effective: Tensor, counts: Tensor, names: Sequence[str], advice: tuple[str, str] = OF_DENSITY) -> list[str]:
    """Sentences on weights that do nothing, or that rest on a few samples.

    Args:
        effective: effective sample size of every class, (C,).
        counts: samples of every class, (C,).
        names: of the classes.
        advice: as `describe_weights` takes it.
    """
    large = counts >= 2
    if not bool(large.any()):
        return []
    share = effective[large] / counts[large]
    told = []
    if bool((share > UNIFORM).all()):
        told.append(
            f"The weights are all but uniform (they leave {100 * float(share.min()):.1f} % of a class in effect, or "
            f"more): {advice[0]}."
        )
    few = large & (effective < counts.double().div(2).clamp(max=FEWEST))
    if bool(few.any()):
        worst = int(torch.where(few, effective, torch.inf).argmin())
        told.append(
            f"The weights of {int(few.sum())} of {int(large.sum())} classes rest on a few images (class "
            f"{names[worst]!r}: on {float(effective[worst]):.1f} of {int(counts[worst])} in effect). In a small class "
            f"these may be all that are odd; if they are outliers, {advice[1]}."
        )
    return told
