"""How images are seen while they are recovered: one crop, flip and shift for a batch (SRe2L, arXiv:2306.13092)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datastill.augment.crops import crop_resize, flip, resized_crop_boxes, roll
from datastill.core.errors import InputError, nearest

#: From progress t/T in [0, 1) to the bounds of a crop's share of the image.
Curriculum = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class EasyToHard:
    """The curriculum of CDA (Yin and Shen, arXiv:2311.18838): the lower bound falls from 1 to `low`.

    With t/M the progress towards the milestone and gamma = 1 - low: "step" 1 until then; "linear"
    low + gamma (1 - t/M); "cosine" low + gamma (1 + cos(pi t/M)) / 2. Milestone 0 is the plain crop of SRe2L.
    """

    kind: str = "cosine"
    low: float = 0.08
    milestone: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("step", "linear", "cosine"):
            raise InputError(
                f"There is no curriculum {self.kind!r}. {nearest(self.kind, ('step', 'linear', 'cosine'))}"
            )
        if not 0 < self.low <= 1 or not 0 <= self.milestone <= 1:
            raise InputError("A curriculum needs a lower bound in (0, 1] and a milestone in [0, 1].")

    def __call__(self, progress: float) -> tuple[float, float]:
        """Bounds (low, 1) of a crop's share at a progress of the whole run."""
        if progress >= self.milestone:
            return self.low, 1.0
        part = progress / self.milestone
        shares = {"step": 1.0, "linear": 1 - part, "cosine": (1 + math.cos(math.pi * part)) / 2}
        return self.low + (1 - self.low) * shares[self.kind], 1.0


@dataclass(frozen=True)
class RecoveryViews:
    """Crop, then flip, then circular shift.

    Attributes:
        crop: bounds of a crop's share of the image over the run, resized to the whole; None crops nothing.
        flip: mirror with probability one half.
        jitter: most pixels of the shift along both axes, from 0 or, if `signed`, from -jitter.
        per_sample: draw for each image; the published loops draw once for the batch.
    """

    crop: Curriculum | None = None
    flip: bool = False
    jitter: int = 0
    signed: bool = False
    per_sample: bool = False

    def draw(self, generator: torch.Generator, rows: int, shape: Sequence[int], progress: float) -> dict[str, Tensor]:
        """The record of one step for images (rows, c, h, w): `boxes`, `flips` and `shifts`, with one row or `rows`."""
        n = rows if self.per_sample else 1
        height, width = int(shape[-2]), int(shape[-1])
        record: dict[str, Tensor] = {}
        if self.crop is not None:
            record["boxes"] = resized_crop_boxes(generator, n, (height, width), scale=self.crop(progress))
        if self.flip:
            record["flips"] = torch.rand(n, generator=generator) < 0.5
        if self.jitter:
            lowest = -self.jitter if self.signed else 0
            record["shifts"] = torch.randint(lowest, self.jitter + 1, (n, 2), generator=generator)
        return record

    def apply(self, x: Tensor, record: dict[str, Tensor]) -> Tensor:
        """Images (n, c, h, w) as a record has them seen; differentiable."""
        if "boxes" in record:
            x = crop_resize(x, record["boxes"])
        if "flips" in record:
            x = flip(x, record["flips"])
        if "shifts" in record:
            x = roll(x, record["shifts"])
        return x

    def describe(self) -> dict[str, Any]:
        """For people."""
        return {"crop": self.crop is not None, "flip": self.flip, "jitter": self.jitter, "per_sample": self.per_sample}
