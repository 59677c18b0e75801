"""Coloured digits: each class has its colour, and a few of its images have that of another class.

The ten colours, the jitter and the severities are those of the generator of Nam et al., "Learning from Failure"
(NeurIPS 2020, arXiv:2007.02561).
"""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np

from datastill.core.errors import InputError

#: Mean colour of each class, RGB in [0, 1].
COLOURS = (
    (0.9837, 0.3125, 0.1686),  # red-orange
    (0.9905, 0.9156, 0.3515),  # yellow
    (0.6730, 0.4611, 0.5798),  # mauve
    (0.7833, 0.8316, 0.6013),  # khaki
    (0.0880, 0.7780, 0.9818),  # cyan
    (0.3214, 0.9611, 0.4464),  # green
    (0.0246, 0.2357, 0.7587),  # blue
    (0.5552, 0.1016, 0.7618),  # purple
    (0.2077, 0.3929, 0.0187),  # dark green
    (0.8337, 0.2024, 0.2669),  # crimson
)

#: Standard deviation of the jitter of each channel by severity: a higher severity is a purer colour.
JITTER = {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005, 5: 0.002}


def colours(count: int) -> np.ndarray:
    """Mean colours, (count, 3) in [0, 1]: the ten of the table, then hues a golden angle apart (ours)."""
    golden = (math.sqrt(5) - 1) / 2
    more = [
        colorsys.hsv_to_rgb((c * golden) % 1, (0.9, 0.5)[c % 2], (0.95, 0.55)[c // 2 % 2])
        for c in range(max(0, count - 10))
    ]
    return np.array([*COLOURS[:count], *more])


class Colours:
    """Paints the strokes of grey images and leaves the background black.

    Args:
        severity: 1..5, see `JITTER`.

    Raises:
        InputError: another severity.
    """

    mode = "L"
    values = None

    def __init__(self, severity: int) -> None:
        if severity not in JITTER:
            raise InputError(f"cmnist:severity={severity} must be 1, 2, 3, 4 or 5; a higher one is a purer colour.")
        self.severity = severity

    def identity(self) -> Any:
        return ["colours", self.severity]

    def paint(self, image: np.ndarray, bias: int, rng: np.random.Generator) -> np.ndarray:
        """colour (3, 1, 1) x grey (1, h, w), with one jitter for each channel of the image."""
        colour = colours(bias + 1)[bias] + rng.normal(0, JITTER[self.severity], 3)
        return np.rint(colour.clip(0, 1)[:, None, None] * image).astype(np.uint8)
