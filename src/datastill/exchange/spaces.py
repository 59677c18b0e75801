"""The Space of a released set, as its importer states it. A file of tensors does not say it, and we do not guess."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.space import Space
from datastill.data.spaces import CONVENTIONAL, absolute_zca, conventional, measure

if TYPE_CHECKING:
    from datastill.data.real import RealSet

CHOICES = {
    "conventional": "(pixel - mean) / std with the published constants of the data set: DC, DSA, DM and most others; "
    "'conventional:cifar10' takes those of another set, as several codes do for CIFAR-100",
    "raw": "pixels in [0, 1]: IDC",
    "zca": "whitened with an absolute epsilon of 0.1, without mean and std: MTT and its followers run with --zca",
    "measured": "(pixel - mean) / std as measured on the training images",
}


def stated_space(space: str | Space | None, real: RealSet, images: Tensor | None, zca_eps: float = 0.1) -> Space:
    """The Space that the importer states.

    Args:
        space: a Space, or one of `CHOICES`.
        real: the real set, whose name decides on constants and whose training images are measured.
        images: as stored; the error for a Space that is not stated tells their range.
        zca_eps: what is added to the eigenvalues of "zca".

    Raises:
        InputError: none is stated, or none of that name, or the data set has no published constants.
    """
    if isinstance(space, Space):
        return real.with_space(space).space  # refuses one of other channels or sizes
    if space == "raw":
        return Space()
    if space == "measured":
        return measure(real.store)
    if space == "zca":
        return absolute_zca(real.store, zca_eps)
    kind, _, other = (space or "").partition(":")
    if kind == "conventional":
        found = conventional(other or real.name, real.shape[0])
        if found is None:
            raise InputError(
                f"There are no published constants for {other or real.name!r} with {real.shape[0]} channel"
                f"{'s' * (real.shape[0] > 1)}; known: {', '.join(sorted(CONVENTIONAL))}. "
                "Name one ('conventional:cifar10'), or take 'measured' or 'raw'."
            )
        return found
    listed = "".join(f"\n  {name:<13} {text}" for name, text in CHOICES.items())
    hint = "" if images is None else f"\n{range_hint(images)}"
    start = "The space of the images is not stated" if space is None else f"There is no space {space!r} to state"
    raise InputError(
        f"{start}, and a wrong one gives a wrong score: give space= (--space) as one of{listed}{hint}\n"
        "The code that made the set says which; so may its README."
    )


def range_hint(images: Tensor) -> str:
    """What the values of stored images say of their Space, and what they cannot say."""
    low, high = float(images.min()), float(images.max())
    told = f"The values run from {low:.3g} to {high:.3g}, mean {float(images.double().mean()):.3g}"
    if low >= -1e-3 and high <= 1 + 1e-3:
        return f"{told}: as raw pixels do."
    return f"{told}: more than raw pixels take, unless they were learned without bounds; mean/std and zca look alike."


def outside(space: Space, images: Tensor) -> float:
    """The fraction of pixel values beyond [0, 1]: large where the Space is not the one that the set was made in."""
    pixels = space.decode(images)
    return float(((pixels < -1e-3) | (pixels > 1 + 1e-3)).double().mean())
