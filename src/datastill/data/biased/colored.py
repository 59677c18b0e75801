"""Colored digits: each class has its color, and a few of its images have that of another class.

The ten colors, the jitter and the severities are those of the generator of Nam et al., "Learning from Failure"
(NeurIPS 2020, arXiv:2007.02561).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datastill.core.errors import InputError
from datastill.data.biased.attribute import Attribute

#: Mean color of each class, RGB in [0, 1].
COLORS = (
    (0.9837, 0.3125, 0.1686),
    (0.9905, 0.9156, 0.3515),
    (0.6730, 0.4611, 0.5798),
    (0.7833, 0.8316, 0.6013),
    (0.0880, 0.7780, 0.9818),
    (0.3214, 0.9611, 0.4464),
    (0.0246, 0.2357, 0.7587),
    (0.5552, 0.1016, 0.7618),
    (0.2077, 0.3929, 0.0187),
    (0.8337, 0.2024, 0.2669),
)

NAMES = ("red-orange", "yellow", "mauve", "khaki", "cyan", "green", "blue", "purple", "dark green", "crimson")

#: Standard deviation of the jitter of each channel by severity: a higher severity is a purer color.
JITTER = {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005, 5: 0.002}


def colors(count: int) -> np.ndarray:
    """Mean colors, (count, 3) in [0, 1]: the ten of the table, then hues a golden angle apart (ours)."""
    golden = (math.sqrt(5) - 1) / 2
    more = [
        colorsys.hsv_to_rgb((c * golden) % 1, (0.9, 0.5)[c % 2], (0.95, 0.55)[c // 2 % 2])
        for c in range(max(0, count - 10))
    ]
    return np.array([*COLORS[:count], *more])


@dataclass(frozen=True)
class Nearest:
    """The colors that images are nearest to."""

    index: Tensor  #: of a color, (n,) int64
    distance: Tensor  #: angle to it in degrees, (n,) float64; 90 for a black image


def nearest_color(pixels: Tensor, known: Tensor | np.ndarray | Sequence[Sequence[float]]) -> Nearest:
    """The color in whose direction the bright pixels of each image lie, and the angle between the two.

    Bright are pixels of more than half the image's brightest channel. The angle tells how much the answer is worth:
    an image of several colors lies far from all.

    Args:
        pixels: (n, 3, h, w) in [0, 1].
        known: colors, (k, 3).
    """
    bright = pixels.amax(1, keepdim=True)
    weight = bright * (bright > 0.5 * bright.amax((2, 3), keepdim=True))
    cosine = functional.normalize((pixels * weight).sum((2, 3)).double(), dim=1) @ directions(known).T
    closest = cosine.clamp(-1, 1).max(1)
    return Nearest(closest.indices, closest.values.acos().rad2deg())


def directions(known: Tensor | np.ndarray | Sequence[Sequence[float]]) -> Tensor:
    """Colors (k, 3) scaled to length 1, float64."""
    return functional.normalize(torch.as_tensor(known, dtype=torch.float64), dim=1)


class Colors:
    """Paints the strokes of gray images and leaves the background black.

    Args:
        severity: 1..5, see `JITTER`.

    Raises:
        InputError: another severity.
    """

    mode = "L"
    values = None

    def __init__(self, severity: int) -> None:
        if severity not in JITTER:
            raise InputError(f"cmnist:severity={severity} must be 1, 2, 3, 4 or 5; a higher one is a purer color.")
        self.severity = severity

    def attribute(self, count: int) -> Attribute:
        names = (*NAMES, *(f"color {c}" for c in range(len(NAMES), count)))
        return Attribute("color", names[:count], tuple((r, g, b) for r, g, b in colors(count).tolist()))

    def identity(self) -> Any:
        return ["colours", self.severity]

    def paint(self, image: np.ndarray, bias: int, rng: np.random.Generator) -> np.ndarray:
        """color (3, 1, 1) x gray (1, h, w), with one jitter for each channel of the image."""
        color = colors(bias + 1)[bias] + rng.normal(0, JITTER[self.severity], 3)
        return np.rint(color.clip(0, 1)[:, None, None] * image).astype(np.uint8)
