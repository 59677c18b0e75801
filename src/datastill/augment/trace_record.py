"""What was drawn to augment one batch, and its application: a pure function of the images.

`augment.trace` draws such records and says what they are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.augment import crops, mix
from datastill.core.errors import InputError

_PER_IMAGE = ("row_order", "column_order", "boxes", "flips", "partner")

#: The fields that `Trace.tensors` may hold.
FIELDS = (*_PER_IMAGE, "box", "lam")


@dataclass(frozen=True, eq=False)
class Trace:
    """What was drawn for one batch of n images; a field is None where the augmentation has no such part.

    Attributes:
        size: height and width of the images, pixels.
        row_order: (n, g) int64: the image is cut into g strips of rows, and place k takes strip row_order[:, k].
        column_order: (n, g) int64: the same for columns.
        boxes: (n, 4) int64: top, left, height, width of the crop, which is resized to the image's size.
        flips: (n,) bool: mirrored left-right.
        partner: (n,) int64: position in the batch of the image that each is mixed with.
        box: (4,) int64: top, left, bottom, right of the partner's rectangle, clipped to the image (CutMix).
        lam: 0-dim float32: the image's own weight (MixUp).
    """

    size: tuple[int, int]
    row_order: Tensor | None = None
    column_order: Tensor | None = None
    boxes: Tensor | None = None
    flips: Tensor | None = None
    partner: Tensor | None = None
    box: Tensor | None = None
    lam: Tensor | None = None

    def __eq__(self, other: object) -> bool:
        """Whether both give the same views."""
        if not isinstance(other, Trace):
            return NotImplemented
        mine, theirs = self.tensors(), other.tensors()
        same = self.size == other.size and mine.keys() == theirs.keys()
        return same and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())

    __hash__ = None  # type: ignore[assignment]

    @property
    def share(self) -> float:
        """The part of a view that is the image's own, in [0, 1]: of its area (CutMix) or of its values (MixUp)."""
        if self.box is not None:
            return self._cutmix(0).share
        return 1.0 if self.lam is None else float(self.lam)

    def apply(self, images: Tensor) -> Tensor:
        """The views of a batch; differentiable, and `images` are never changed in place.

        Args:
            images: (n, c, h, w) float, in the order that the trace was drawn for, on any device.

        Returns:
            Views of the same shape; `images` itself where nothing was drawn.

        Raises:
            InputError: the trace was drawn for images of another number or size.
        """
        self._refuse_others(images)
        x = images
        if self.row_order is not None and self.column_order is not None:
            x = crops.take(x, _strips(self.row_order, self.size[0]).to(x.device), 2)
            x = crops.take(x, _strips(self.column_order, self.size[1]).to(x.device), 3)
        if self.boxes is not None:
            x = crops.crop_resize(x, self.boxes)
        if self.flips is not None:
            x = crops.flip(x, self.flips)
        if self.box is not None:
            return mix.apply(x, self._cutmix(len(x)))
        if self.partner is not None:
            return x * self.share + x[self.partner.to(x.device)] * (1 - self.share)
        return x

    def hard_targets(self, y: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Targets of the views as probabilities (n, C): the image's and its partner's, by their shares.

        The share of CutMix is that of the clipped box, not the one that was drawn.

        Args:
            y: class positions (n,) int64, or probabilities (n, C).
            classes: C, the number of logits.
            dtype: of the probabilities, where `y` holds positions.
        """
        own = y if y.ndim > 1 else F.one_hot(y, classes).to(dtype)
        if self.partner is None:
            return own
        return self.share * own + (1 - self.share) * own[self.partner.to(own.device)]

    def tensors(self) -> dict[str, Tensor]:
        """The fields that were drawn, by name; `from_tensors` is the inverse."""
        fields = FIELDS
        return {name: getattr(self, name) for name in fields if getattr(self, name) is not None}

    @classmethod
    def from_tensors(cls, size: tuple[int, int], tensors: Mapping[str, Tensor]) -> Trace:
        """The trace that `tensors` described; integers of any width are taken.

        Raises:
            InputError: a field of another name, or an incomplete trace.
        """
        unknown = set(tensors) - set(FIELDS)
        mixed = ("partner" in tensors) == (("box" in tensors) != ("lam" in tensors))
        if unknown or not mixed or ("row_order" in tensors) != ("column_order" in tensors):
            raise InputError(f"These are not the fields of one stored augmentation: {', '.join(sorted(tensors))}.")
        kinds = {"flips": torch.bool, "lam": torch.float32}
        return cls(size, **{name: t.to(kinds.get(name, torch.int64)) for name, t in tensors.items()})

    def refuse_outside(self, pad: int) -> None:
        """Refuse a stored trace that reaches outside the images, `pad` pixels around them, or the batch.

        Raises:
            InputError: it does; the field is named.
        """
        sides = torch.tensor(self.size)
        sound = {}
        if self.boxes is not None:
            start, length = self.boxes[:, :2], self.boxes[:, 2:]
            inside = (start >= -pad) & (length >= 1) & (length <= sides) & (start + length <= sides + pad)
            sound["boxes"] = bool(inside.all())
        if self.partner is not None:
            sound["partner"] = bool(((self.partner >= 0) & (self.partner < len(self.partner))).all())
        if self.box is not None:
            corners = self.box.view(2, 2)
            sound["box"] = bool(((corners >= 0) & (corners <= sides)).all() and (corners[0] <= corners[1]).all())
        if self.lam is not None:
            sound["lam"] = 0 <= float(self.lam) <= 1
        for name, fits in sound.items():
            if not fits:
                raise InputError(f"The {name} of a stored augmentation reach outside images of {self.size} pixels.")

    def _cutmix(self, n: int) -> mix.MixRecord:
        assert self.box is not None
        top, left, bottom, right = (int(v) for v in self.box)
        partner = torch.zeros(n, dtype=torch.int64) if self.partner is None else self.partner
        return mix.MixRecord(self.size, partner, (top, left, bottom, right))

    def _refuse_others(self, images: Tensor) -> None:
        rows = next((len(t) for name, t in self.tensors().items() if name in _PER_IMAGE), len(images))
        if tuple(images.shape[-2:]) != self.size or len(images) != rows:
            raise InputError(
                f"The augmentation was drawn for {rows} images of {self.size} pixels, "
                f"not for {len(images)} of {tuple(images.shape[-2:])}."
            )


def _strips(order: Tensor, side: int) -> Tensor:
    """Source positions (n, side) when strips change places; the first strips have what is left over, one pixel each."""
    count = order.shape[1]
    base, more = divmod(side, count)
    lengths = torch.tensor([base + (k < more) for k in range(count)])
    strip = torch.arange(count).repeat_interleave(lengths)  # (side,)
    return order.argsort(1)[:, strip].argsort(dim=1, stable=True)
