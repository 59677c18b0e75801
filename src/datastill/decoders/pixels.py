"""The images themselves are the codes, in the real set's Space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.plan import Codes, Synthetic
from datastill.decoders import stored_shape


@dataclass(frozen=True)
class Pixels:
    """One leaf, `images` (n, c, h, w); `clamp` keeps it inside valid pixels after every step."""

    clamp: bool = False

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
        """Clamp to [0, 1] as seen in the Space, if asked."""
        bounds = context.task.real.space.bounds() if self.clamp else None
        if bounds is not None:
            low, high = (b.to(codes["images"]) for b in bounds)
            codes["images"].copy_(codes["images"].maximum(low).minimum(high))

    def describe(self) -> dict[str, Any]:
        """For the manifest and the run's hash."""
        return {"decoder": "pixels", "clamp": self.clamp}


DECODER = Pixels
