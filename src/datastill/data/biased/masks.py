"""Where a garment is: foreground masks of gray pictures on black."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

#: A hole of more than this share of the picture is background (a handle, an arm akimbo) and is not filled.
LARGEST_HOLE = 0.03


def foreground(gray: np.ndarray, kind: str, gain: float, threshold: float) -> np.ndarray:
    """Weight of the foreground in each pixel, (h, w) float in [0, 1].

    Holes (dark pixels that no path of dark pixels joins to the border, found by a flood fill from there) are
    foreground, unless they are large: otherwise dark prints would show the background.

    Args:
        gray: (h, w) float in [0, 1].
        kind: "hard" for 1 where gray > threshold or in a hole, else 0; "soft" for clip(gray * gain, 0, 1), but 1
            inside the hard mask, more than a pixel from its edge, so that dark garments are opaque.
        gain: of the soft mask.
        threshold: gray level above which a pixel is foreground.
    """
    solid = gray > threshold
    solid |= holes(solid)
    if kind == "hard":
        return solid.astype(np.float64)
    inside = solid.copy()  # what is left of it when its outline is taken off
    inside[1:] &= solid[:-1]
    inside[:-1] &= solid[1:]
    inside[:, 1:] &= solid[:, :-1]
    inside[:, :-1] &= solid[:, 1:]
    return np.where(inside, 1.0, (gray * gain).clip(0, 1))


def holes(solid: np.ndarray) -> np.ndarray:
    """The small holes of a (h, w) bool mask; diagonal neighbors do not join."""
    regions, count = ndimage.label(~solid)
    filled = np.bincount(regions.ravel(), minlength=count + 1) <= LARGEST_HOLE * solid.size
    filled[0] = False  # the mask itself
    for side in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        filled[side] = False
    return filled[regions]
