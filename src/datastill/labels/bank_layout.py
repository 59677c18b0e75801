"""Which arrays a label bank has, and their sizes: all of it follows from a few numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from datastill.augment.trace import TraceSpec
from datastill.core.errors import InputError, nearest
from datastill.labels.bank_labels import LabelCode, unsigned
from datastill.training.batches import batch_bounds

ENCODINGS = ("seed", "explicit")


@dataclass(frozen=True)
class Field:
    """One array, with a row for every image of every epoch, or for every batch of every epoch."""

    shape: tuple[int, ...]  #: of one row
    dtype: str
    per_image: bool = True


@dataclass(frozen=True)
class Layout:
    """What determines the arrays of a bank.

    Attributes:
        count: n, the number of images.
        size: their height and width, pixels.
        classes: C, the number of logits.
        epochs: how many are stored.
        batch: images per batch; see `batch_bounds` for the last one.
        trace: how batches are augmented.
        encoding: "seed" stores one number for a batch's augmentation, "explicit" all that was drawn.
        code: how logits are stored.

    Raises:
        InputError: nothing to store, or an unknown encoding.
    """

    count: int
    size: tuple[int, int]
    classes: int
    epochs: int
    batch: int
    trace: TraceSpec
    encoding: str = "seed"
    code: LabelCode = field(default_factory=LabelCode)

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise InputError(f"Unknown encoding {self.encoding!r}. {nearest(self.encoding, ENCODINGS)}")
        if self.epochs < 1:
            raise InputError(f"A label bank holds at least one epoch, not {self.epochs}.")
        self.code.fields(self.classes)
        batch_bounds(self.count, self.batch)

    @property
    def bounds(self) -> list[int]:
        """Where the batches of an epoch begin, and where the last one ends."""
        return batch_bounds(self.count, self.batch)

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return len(self.bounds) - 1

    def fields(self) -> dict[str, Field]:
        """The arrays by name."""
        fields = {"index": Field((), unsigned(self.count))}
        fields.update({"seed": Field((), "<i8", False)} if self.encoding == "seed" else self._drawn())
        fields.update({name: Field(*row) for name, row in self.code.fields(self.classes).items()})
        return fields

    def shape(self, field: Field) -> tuple[int, ...]:
        """Shape of a whole array: (epochs, images or batches, ...)."""
        return (self.epochs, self.count if field.per_image else self.batches, *field.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, without the headers of their files."""
        return sum(math.prod(self.shape(each)) * np.dtype(each.dtype).itemsize for each in self.fields().values())

    def _drawn(self) -> dict[str, Field]:
        """The fields of a trace of this spec, with the names that `Trace.tensors` has."""
        spec, fields = self.trace, dict[str, Field]()
        side = "<i2" if max(self.size) + spec.pad < 2**15 else "<i4"
        if spec.shuffle > 1:
            order = Field((spec.shuffle,), unsigned(spec.shuffle))
            fields.update(row_order=order, column_order=order)
        if spec.crop != "none":
            fields["boxes"] = Field((4,), side)
        if spec.flip:
            fields["flips"] = Field((), "|b1")
        if spec.mix != "none":
            fields["partner"] = Field((), unsigned(max(b - a for a, b in pairwise(self.bounds))))
        if spec.mix == "cutmix":
            fields["box"] = Field((4,), side, False)
        if spec.mix == "mixup":
            fields["lam"] = Field((), "<f4", False)
        return fields
