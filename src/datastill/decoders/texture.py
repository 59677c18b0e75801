"""Textures: a stored canvas is larger than an image, and every step sees other crops of it (MTT, arXiv:2203.11932).

The canvas is a torus: a crop that leaves it on one side comes in again on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Codes, Synthetic
from datastill.core.rng import Rng
from datastill.decoders import stored_shape


@dataclass(frozen=True)
class Texture:
    """One leaf, `images` (n, c, factor h, factor w), in the Space.

    Without a record a canvas is decoded as its factor x factor tiles, taken row by row; all images of one tile come
    before those of the next.

    Raises:
        InputError: an option out of range; when decoding, a canvas whose sides are no multiples of the factor.
    """

    factor: int = 2  #: side of the canvas in images
    samples: int = 1  #: crops of each canvas in a step

    def __post_init__(self) -> None:
        for name in ("factor", "samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"A texture's {name} is {value!r}, and must be a whole number of at least 1.")

    def encode(self, images: Tensor) -> Codes:
        """Canvases as a leaf of their own."""
        self._side(*images.shape[2:])
        return {"images": images.clone()}

    def draw(self, generator: torch.Generator) -> int:
        """The seed of the crops of a step."""
        return int(torch.randint(2**62, (), generator=generator))

    def decode(self, codes: Codes, y: Tensor, record: int | None = None) -> Synthetic:
        """Crops by the record, or all tiles, with the labels of their canvases."""
        canvas = codes["images"]
        h, w = self._side(*canvas.shape[2:])
        if record is None:
            corners = torch.cartesian_prod(torch.arange(self.factor) * h, torch.arange(self.factor) * w).view(-1, 2)
            starts = corners[:, None].expand(-1, len(canvas), -1)
        else:
            generator = Rng(record).generator("crops")
            limits = torch.tensor(canvas.shape[2:])
            starts = (torch.rand(self.samples, len(canvas), 2, generator=generator) * limits).long() % limits
        x = torch.cat([_crop(canvas, start, h, w) for start in starts])
        return Synthetic(x, torch.cat([y] * len(starts)))

    def backward(self, codes: Codes, y: Tensor, record: int | None, grads: Tensor) -> Codes:
        """The transpose of `decode`, by autograd."""
        with torch.enable_grad():
            leaf = codes["images"].detach().requires_grad_()
            x = self.decode({"images": leaf}, y, record).x
            return {"images": torch.autograd.grad(x, leaf, grads)[0]}

    def rendered(self, shapes: Mapping[str, Sequence[int]], ipc: int, classes: int) -> tuple[int, int, int, int]:
        """All tiles of every canvas."""
        n, c, height, width = stored_shape(shapes)
        return n * self.factor**2, c, *self._side(height, width)

    def project(self, codes: Codes, context: Context, when: str) -> None:
        """Nothing: pixels are not clamped."""

    def describe(self) -> dict[str, Any]:
        """For the manifest and the run's hash."""
        return {"decoder": "texture", **asdict(self)}

    def _side(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image of a canvas."""
        if height % self.factor or width % self.factor:
            raise InputError(
                f"A canvas of {height} x {width} pixels does not hold {self.factor} x {self.factor} images."
            )
        return height // self.factor, width // self.factor


def _crop(canvas: Tensor, start: Tensor, h: int, w: int) -> Tensor:
    """Crops (n, c, h, w) of canvases (n, c, H, W), wrapped around, from the corners start (n, 2)."""
    n, c, height, width = canvas.shape
    rows = ((start[:, :1] + torch.arange(h)) % height).to(canvas.device)
    columns = ((start[:, 1:] + torch.arange(w)) % width).to(canvas.device)
    image, channel = torch.arange(n, device=canvas.device), torch.arange(c, device=canvas.device)
    index = (
        image[:, None, None, None],
        channel[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    )
    return canvas[index]


DECODER = Texture
