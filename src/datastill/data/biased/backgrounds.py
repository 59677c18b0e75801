"""Garments on backgrounds: each class has its kind of background. The recipe is ours, see the reference page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from datastill.core.errors import InputError, nearest
from datastill.data.biased.attribute import Attribute
from datastill.data.biased.masks import LARGEST_HOLE, foreground
from datastill.data.biased.scenes import FolderBackgrounds
from datastill.data.biased.textures import ProceduralBackgrounds

MASKS = ("soft", "hard")


class Backgrounds(Protocol):
    """Where backgrounds come from."""

    categories: int

    @property
    def names(self) -> Sequence[str]:
        """Of the categories."""
        ...

    def __call__(self, category: int, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """A background of that category, (3, height, width) float in [0, 1]; another with every draw."""
        ...

    def identity(self) -> Any:
        """JSON-able: all that a background depends on beside the arguments."""
        ...


class OnBackgrounds:
    """Puts gray pictures in front of backgrounds: m gray + (1 - m) background, with the mask m of `masks`.

    Args:
        backgrounds: "procedural", or a folder with a sub-folder of pictures per category.
        mask: "soft" or "hard".
        gain: of the soft mask, above 0.
        threshold: gray level of 0..255 above which a pixel counts as foreground.
        where: "train" or "test", which share no background.

    Raises:
        InputError: an unknown mask, numbers out of range, or a folder that cannot be used.
    """

    mode = "L"

    def __init__(
        self, backgrounds: str = "procedural", mask: str = "soft", gain: float = 4.0, threshold: int = 10,
        where: str = "train",
    ) -> None:  # fmt: skip
        if mask not in MASKS:
            raise InputError(f"bg-fmnist has no mask {mask!r}. {nearest(mask, MASKS)}")
        if not (math.isfinite(gain) and gain > 0):
            raise InputError(f"bg-fmnist:gain={gain:g} must be above 0; 4 makes gray levels from 64 on opaque.")
        if not 0 <= threshold < 255:
            raise InputError(f"bg-fmnist:threshold={threshold} must be a gray level of 0..254.")
        self.mask, self.gain, self.threshold = mask, gain, threshold
        self.backgrounds: Backgrounds = (
            ProceduralBackgrounds() if backgrounds == "procedural" else FolderBackgrounds(backgrounds, where)
        )
        self.values = self.backgrounds.categories

    def attribute(self, count: int) -> Attribute:
        return Attribute("background", tuple(self.backgrounds.names[:count]))

    def identity(self) -> Any:
        settings = [self.mask, self.gain if self.mask == "soft" else 0, self.threshold, LARGEST_HOLE]
        return ["backgrounds", *settings, self.backgrounds.identity()]

    def paint(self, image: np.ndarray, bias: int, rng: np.random.Generator) -> np.ndarray:
        """A (1, h, w) uint8 picture on a background of category `bias`, (3, h, w) uint8."""
        gray = image[0] / 255
        behind = self.backgrounds(bias, rng, (gray.shape[0], gray.shape[1]))
        mask = foreground(gray, self.mask, self.gain, self.threshold / 255)
        return np.rint((mask * gray + (1 - mask) * behind) * 255).astype(np.uint8)
