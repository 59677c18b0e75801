"""The images themselves are the codes, in the real set's Space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Codes, Synthetic
from datastill.decoders import stored_shape
from datastill.decoders.contrast import Contrast


@dataclass(frozen=True)
class Pixels:
    """One leaf, `images` (n, c, h, w).

    Args:
        clamp: keep it inside valid pixels after every step.
        contrast: of real images, which every image gets after every step, before it is clamped; None lets it drift.
            "real" is what a manifest says of it, and enough to read a set.

    Raises:
        InputError: another contrast.
    """

    clamp: bool = False
    contrast: Contrast | Literal["real"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.contrast, Contrast) and self.contrast not in ("real", None):
            raise InputError(f"Pixels keep the contrast of real images or none, not {self.contrast!r}.")

    def encode(self, images: Tensor) -> Codes:
        """The images as a leaf of their own."""
        return {"images": images.clone()}

    def draw(self, generator: torch.Generator) -> None:
        """Nothing random."""
        return None

    def decode(self, codes: Codes, y: Tensor, record: Any = None) -> Synthetic:
        """The images."""
        return Synthetic(codes["images"], y)

    def backward(self, codes: Codes, y: Tensor, record: Any, grads: Tensor) -> Codes:
        """The identity."""
        return {"images": grads}

    def rendered(self, shapes: Mapping[str, Sequence[int]], ipc: int, classes: int) -> tuple[int, int, int, int]:
        """As they are stored."""
        return stored_shape(shapes)

    def project(self, codes: Codes, context: Context, when: str) -> None:
        """Give back the contrast, and clamp to [0, 1] as seen in the Space, if asked."""
        if isinstance(self.contrast, Contrast):
            self.contrast.restore(codes["images"], context.block.y)
        bounds = context.task.real.space.bounds() if self.clamp else None
        if bounds is not None:
            low, high = (b.to(codes["images"]) for b in bounds)
            codes["images"].copy_(codes["images"].maximum(low).minimum(high))

    def describe(self) -> dict[str, Any]:
        """For the manifest and the run's hash; what is done between steps is told and no part of reading a set."""
        kept = {} if self.contrast is None else {"contrast": "real"}
        return {"decoder": "pixels", "clamp": self.clamp, **kept}


DECODER = Pixels
