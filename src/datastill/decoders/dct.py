"""Frequency codes: a few coefficients of the discrete cosine transform of each image (FreD, arXiv:2311.08819).

x = D_h' Z D_w with D the orthonormal DCT-II, and Z zero but for the `kept` frequencies, the same for all images and
channels. An image takes fewer numbers, so several of them, `instances`, take the place of one stored image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Codes, Synthetic


@dataclass(frozen=True)
class Dct:
    """One leaf, `coefficients` (n, instances, c, m) of images in the Space.

    Raises:
        InputError: sizes that are none, or frequencies that are not in the image or come twice.
    """

    height: int  #: of an image
    width: int
    kept: Sequence[int]  #: the m frequencies, as row * width + column, ascending
    instances: int = 1  #: images that a stored one holds

    def __post_init__(self) -> None:
        for name in ("height", "width", "instances"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65_536:
                raise InputError(f"Frequency codes have {name} {value!r}, and need a whole number from 1 to 65,536.")
        kept = tuple(self.kept)
        sound = all(isinstance(k, int) and not isinstance(k, bool) for k in kept) and len(kept) > 0
        if not sound or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= self.height * self.width:
            raise InputError(
                f"Frequency codes keep positions of a plane of {self.height} x {self.width}, ascending and each once."
            )
        object.__setattr__(self, "kept", kept)

    def encode(self, images: Tensor) -> Codes:
        """Coefficients of images (n * instances, c, h, w), those of one stored image after each other."""
        return {"coefficients": self._analyzed(images)}

    def draw(self, generator: torch.Generator) -> None:
        """Nothing random."""
        return None

    def decode(self, codes: Codes, y: Tensor, record: Any = None) -> Synthetic:
        """Images (n * instances, c, h, w) and, for each, the label of its stored image."""
        z = codes["coefficients"]
        plane = z.new_zeros(*z.shape[:3], self.height * self.width)
        plane[..., list(self.kept)] = z
        plane = plane.view(-1, z.shape[2], self.height, self.width)
        high, wide = self._matrices(z)
        return Synthetic(high.T @ plane @ wide, y.repeat_interleave(self.instances, dim=0))

    def backward(self, codes: Codes, y: Tensor, record: Any, grads: Tensor) -> Codes:
        """The transpose of `decode`, which is `encode`, since the transform is orthonormal."""
        return {"coefficients": self._analyzed(grads)}

    def rendered(self, shapes: Mapping[str, Sequence[int]], ipc: int, classes: int) -> tuple[int, int, int, int]:
        """All instances.

        Raises:
            InputError: there is no such leaf, or of another size.
        """
        found = tuple(shapes.get("coefficients", ()))
        if len(found) != 4 or 0 in found or found[1] != self.instances or found[3] != len(self.kept):
            raise InputError(
                f"The coefficients are {list(found)}, and (images, {self.instances}, channels, {len(self.kept)}) are "
                "needed."
            )
        return found[0] * self.instances, found[2], self.height, self.width

    def project(self, codes: Codes, context: Context, when: str) -> None:
        """Nothing: pixels are not clamped."""

    def describe(self) -> dict[str, Any]:
        """For the manifest and the run's hash."""
        return {"decoder": "dct", **asdict(self), "kept": list(self.kept)}

    def _analyzed(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (self.height, self.width) or len(images) % self.instances:
            raise InputError(
                f"Frequency codes of {self.height} x {self.width} pixels, {self.instances} to a stored image, do not "
                f"fit images of {list(images.shape)}."
            )
        high, wide = self._matrices(images)
        plane = (high @ images @ wide.T).flatten(2)[..., list(self.kept)]
        return plane.view(-1, self.instances, images.shape[1], len(self.kept))

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return cosines(self.height).to(like), cosines(self.width).to(like)


@lru_cache(maxsize=8)
def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix (size, size), a row for each frequency, in float64."""
    k, i = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2 / size) * torch.cos(math.pi * (2 * i + 1) * k / (2 * size))
    matrix[0] /= math.sqrt(2)
    return matrix


def varying_most(images: Tensor, count: int) -> tuple[int, ...]:
    """The `count` frequencies in which images (n, c, h, w) vary most, summed over channels, ascending positions."""
    high, wide = cosines(images.shape[2]), cosines(images.shape[3])
    plane = (high @ images.double() @ wide.T).flatten(2)
    order = plane.var(dim=0, unbiased=False).sum(0).argsort(descending=True, stable=True)
    return tuple(sorted(order[:count].tolist()))


DECODER = Dct
