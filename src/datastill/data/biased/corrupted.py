"""Corrupted photographs: each class has its corruption, and a few of its images have that of another class.

The sets are those of the generator of Nam et al., "Learning from Failure" (NeurIPS 2020, arXiv:2007.02561).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from datastill.core.errors import InputError
from datastill.data.biased.attribute import Attribute
from datastill.data.biased.corruptions import LEVELS, corrupt, corruption_list
from datastill.data.biased.corruptions.frost import read_pictures


class Corrupted:
    """Corrupts images; the bias value is the place of the corruption in a list.

    Args:
        corruptions: "0", "1", "dfa", or names joined by +.
        level: 1..5.
        frost: folder of pictures of ice, or "" for textures made here.

    Raises:
        InputError: an unknown corruption, a level outside 1..5, or a folder without pictures.
    """

    mode = "RGB"

    def __init__(self, corruptions: str = "0", level: int = 5, frost: str = "") -> None:
        self.names = corruption_list(corruptions)
        if level not in (1, 2, 3, 4, 5):
            raise InputError(
                f"ccifar10:level={level} must be 1 to 5; published sets of severity s (1 to 4) are level s + 1."
            )
        self.level = level
        self.pictures = read_pictures(frost) if frost else None
        self.values = len(self.names)

    def attribute(self, count: int) -> Attribute:
        return Attribute("corruption", tuple(name.replace("_", " ") for name in self.names[:count]))

    def identity(self) -> Any:
        used = [(name, LEVELS[name][self.level - 1]) for name in self.names]
        ice = hashlib.sha256()
        for picture in self.pictures or ():
            ice.update(f"{picture.shape}".encode() + picture.tobytes())
        return ["corrupted", used, ice.hexdigest()]

    def paint(self, image: np.ndarray, bias: int, rng: np.random.Generator) -> np.ndarray:
        """A (3, h, w) uint8 image with corruption number `bias`."""
        made = corrupt(image.transpose(1, 2, 0), self.names[bias], self.level, rng, self.pictures)
        return np.ascontiguousarray(made.transpose(2, 0, 1))
