"""CutMix (Yun et al., ICCV 2019, arXiv:1905.04899) as explicit records: a box of each image comes from another one.

One box and one permutation serve a whole batch, as in the released code. The label of a mixed image is mixed by the
areas, after the box was clipped to the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.errors import InputError


@dataclass(frozen=True, eq=False)
class MixRecord:
    """What was drawn for one batch.

    Attributes:
        size: height and width of the images, in pixels.
        partner: position of the image that the box comes from, for each image, (n,) int64.
        box: top, left, bottom, right of the box, inside the image; bottom and right are not in it.
    """

    size: tuple[int, int]
    partner: Tensor
    box: tuple[int, int, int, int]

    @property
    def share(self) -> float:
        """The part of an image that stays its own, in [0, 1]."""
        top, left, bottom, right = self.box
        return 1 - (bottom - top) * (right - left) / (self.size[0] * self.size[1])


@dataclass(frozen=True)
class CutMix:
    """CutMix with some probability for each batch.

    Raises:
        InputError: the probability is not in [0, 1].
    """

    probability: float = 0.5  #: of mixing a batch

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"The probability of CutMix must lie in [0, 1], not {self.probability!r}.")

    def draw(self, n: int, size: tuple[int, int], generator: torch.Generator) -> MixRecord | None:
        """Draw for a batch of n images of `size` (height, width); None leaves them as they are.

        The own share is uniform, lambda ~ Beta(1, 1); the box has int(side * sqrt(1 - lambda)) pixels a side, one less
        where that is odd, around a uniform center, and is clipped to the image.
        """
        chance, share, *center = torch.rand(4, dtype=torch.float64, generator=generator).tolist()
        partner = torch.randperm(n, generator=generator)
        if chance >= self.probability:
            return None
        top, bottom = _cut(size[0], share, center[0])
        left, right = _cut(size[1], share, center[1])
        return MixRecord(size, partner, (top, left, bottom, right))


def apply(x: Tensor, record: MixRecord | None) -> Tensor:
    """Images (n, c, h, w) with the box of their partners; x itself, which is never changed, where nothing is mixed.

    Raises:
        InputError: the record was drawn for another image size or number of images.
    """
    if record is None:
        return x
    if (len(x), *x.shape[2:]) != (len(record.partner), *record.size):
        raise InputError(
            f"CutMix was drawn for {len(record.partner)} images of {record.size} pixels, not for {len(x)} of "
            f"{tuple(x.shape[2:])}."
        )
    top, left, bottom, right = record.box
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x[record.partner.to(x.device), :, top:bottom, left:right]
    return mixed


def mixed_targets(y: Tensor, record: MixRecord | None, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Targets as probabilities (n, C): the own one and the partner's, weighted by area.

    Their cross-entropy is share * CE(own) + (1 - share) * CE(partner's), as the loss is published.

    Args:
        y: class positions (n,) int64, or probabilities (n, C).
        record: what was drawn, or None for the targets as they are.
        classes: C, the number of logits.
        dtype: of the probabilities, where `y` holds positions.
    """
    own = y if y.ndim > 1 else F.one_hot(y, classes).to(dtype)
    if record is None:
        return own
    return record.share * own + (1 - record.share) * own[record.partner.to(own.device)]


def _cut(side: int, share: float, center: float) -> tuple[int, int]:
    """First and last-but-one position of the box along one side, for a uniform `center` in [0, 1)."""
    half = int(side * math.sqrt(1 - share)) // 2
    middle = int(center * side)
    return max(0, middle - half), min(side, middle + half)
