"""Recorded augmentation of whole batches: what was drawn is a record, and applying it is a pure function.

Decoupled distillation (SRe2L: Yin, Xing and Shen, NeurIPS 2023, arXiv:2306.13092) labels every augmented view of every
image, in the fashion of FKD (Shen and Xing, ECCV 2022, arXiv:2112.01528). The student must see the very pixels that the
teacher labeled, so the views are recorded:

    trace = spec.sample(rng.generator("trace", epoch, batch), len(images), images.shape[1:])
    views = trace.apply(images)

Images are cut into patches that change places, cropped, mirrored and then mixed, in this order. All of it happens in
their Space, as networks see them; what a padded crop brings in from outside is 0 there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datastill.augment import crops
from datastill.augment.trace_record import Trace
from datastill.core.errors import InputError

__all__ = ["VERSION", "Trace", "TraceSpec"]

#: How numbers of a generator become a trace. A seed means the same trace only under the same version.
VERSION = 1

#: The shares of MixUp are multiples of 1 / this, so that they are exact in float32.
_SHARE_STEPS = 2**24


@dataclass(frozen=True)
class TraceSpec:
    """What may be drawn for a batch.

    Raises:
        InputError: an unknown kind of crop or mix, or a number out of range.
    """

    crop: str = "none"  #: "none"; "resized", of random area and shape; "padded", moved, with zeros from outside
    min_scale: float = 0.08  #: smallest area of a resized crop, a fraction of the image's
    max_scale: float = 1.0  #: largest area
    pad: int = 4  #: furthest move of a padded crop, pixels
    flip: bool = True  #: mirror half of the images left-right
    shuffle: int = 1  #: g: g strips of rows change places, and g of columns, so that g x g patches do; 1 leaves them
    mix: str = "none"  #: "none", "cutmix" or "mixup", one draw for the whole batch
    alpha: float = 1.0  #: the own share is drawn from Beta(alpha, alpha)

    def __post_init__(self) -> None:
        if self.crop not in ("none", "resized", "padded"):
            raise InputError(f"Unknown crop {self.crop!r}; use 'none', 'resized' or 'padded'.")
        if self.mix not in ("none", "cutmix", "mixup"):
            raise InputError(f"Unknown mix {self.mix!r}; use 'none', 'cutmix' or 'mixup'.")
        if not 0 < self.min_scale <= self.max_scale <= 1:
            raise InputError(
                f"Crops need areas 0 < min_scale <= max_scale <= 1, not {self.min_scale} and {self.max_scale}."
            )
        if self.pad < 0 or self.shuffle < 1:
            raise InputError(f"A trace needs pad >= 0 and shuffle >= 1, not {self.pad} and {self.shuffle}.")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InputError(f"The alpha of a mix is a number above 0, not {self.alpha}.")

    def sample(self, generator: torch.Generator, rows: int, shape: Sequence[int]) -> Trace:
        """Draw for one batch.

        Args:
            generator: a CPU generator.
            rows: n, the number of images.
            shape: (c, h, w) of the images, or (h, w).

        Returns:
            A trace on the CPU; `apply` moves what it needs.

        Raises:
            InputError: images smaller than the grid of patches.
        """
        size = (int(shape[-2]), int(shape[-1]))
        if min(size) < self.shuffle:
            raise InputError(f"Images of {size} pixels cannot be cut into {self.shuffle} x {self.shuffle} patches.")
        drawn: dict[str, Tensor] = {}
        if self.shuffle > 1:
            drawn["row_order"] = _orders(generator, rows, self.shuffle)
            drawn["column_order"] = _orders(generator, rows, self.shuffle)
        if self.crop == "resized":
            drawn["boxes"] = crops.resized_crop_boxes(generator, rows, size, (self.min_scale, self.max_scale))
        if self.crop == "padded":
            drawn["boxes"] = crops.pad_crop_boxes(generator, rows, size, self.pad)
        if self.flip:
            drawn["flips"] = torch.rand(rows, dtype=torch.float64, generator=generator) < 0.5
        if self.mix != "none":
            drawn.update(self._mixture(generator, rows, size))
        return Trace(size, **drawn)

    def replay(self, seed: int, rows: int, shape: Sequence[int]) -> Trace:
        """The trace of a stored seed: `sample` with a generator of its own."""
        return self.sample(torch.Generator().manual_seed(seed), rows, shape)

    def describe(self) -> dict[str, Any]:
        """What a file's header holds; `from_description` is the inverse."""
        return {"version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_description(cls, record: Mapping[str, Any]) -> TraceSpec:
        """The spec that `describe` described.

        Raises:
            InputError: another version of the draws, or unknown fields.
        """
        fields = dict(record)
        version = fields.pop("version", None)
        if version != VERSION:
            raise InputError(f"This augmentation was recorded by version {version} of the draws, not {VERSION}.")
        names = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != names:
            raise InputError(f"A recorded augmentation has the fields {', '.join(sorted(names))}.")
        return cls(**fields)

    def _mixture(self, generator: torch.Generator, rows: int, size: tuple[int, int]) -> dict[str, Tensor]:
        chance, *center = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
        partner = _orders(generator, 1, rows)[0]
        own = _beta(self.alpha, chance)
        if self.mix == "mixup":
            lam = torch.tensor(round(own * _SHARE_STEPS) / _SHARE_STEPS, dtype=torch.float32)
            return {"partner": partner, "lam": lam}
        (top, bottom), (left, right) = (_span(side, own, at) for side, at in zip(size, center, strict=True))
        return {"partner": partner, "box": torch.tensor([top, left, bottom, right])}


def _orders(generator: torch.Generator, rows: int, length: int) -> Tensor:
    """Random orders (rows, length), from uniform numbers alone: a stored seed must not hang on how torch shuffles."""
    return torch.rand(rows, length, dtype=torch.float64, generator=generator).argsort(dim=1, stable=True)


def _beta(alpha: float, u: float) -> float:
    """The quantile u of Beta(alpha, alpha)."""
    if alpha == 1:
        return u
    from scipy.special import betaincinv

    return min(1.0, max(0.0, float(betaincinv(alpha, alpha, u))))


def _span(side: int, own: float, center: float) -> tuple[int, int]:
    """First pixel of the box along one side, and the one after its last, as in `mix`: side * sqrt(1 - own), clipped."""
    half = int(side * math.sqrt(1 - own)) // 2
    middle = int(center * side)
    return max(0, middle - half), min(side, middle + half)
