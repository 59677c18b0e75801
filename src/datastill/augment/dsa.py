"""Differentiable siamese augmentation (Zhao and Bilen, ICML 2021, arXiv:2102.08259) as explicit records.

A record is a table: each row holds the operations of one image and their parameters. Sharing is a matter of
which row an image uses, so siamese augmentation of C classes is one record of C rows, applied twice:

    record = dsa.draw(C, shape, generator)
    real = dsa.apply(x_real, record, rows=y_real)
    synthetic = dsa.apply(x_synthetic, record, rows=y_synthetic)

The strengths below are those of the released code, for images with mean 0 and standard deviation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.augment import operations
from datastill.core.errors import InputError, nearest

#: An operation's id in a record is its position here; stored records rely on this order.
OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")

#: Of these, mode "composite" applies one.
_GEOMETRIC = ("crop", "scale", "rotate")

#: The parameters each operation reads from a record.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "color": ("brightness", "saturation", "contrast"),
    "crop": ("offset",),
    "cutout": ("hole",),
    "flip": ("mirrored",),
    "scale": ("factor",),
    "rotate": ("angle",),
}

_APPLY: dict[str, Callable[..., Tensor]] = {
    "color": operations.color,
    "crop": operations.shift,
    "cutout": operations.cut_out,
    "flip": operations.mirror,
    "scale": operations.scale,
    "rotate": operations.rotate,
}

_FIELDS = ("ops", *(name for names in _PARAMETERS.values() for name in names))


@dataclass(frozen=True, eq=False)
class DsaRecord:
    """What was drawn: one row per image, or per class when images share rows.

    Attributes:
        size: height and width of the images it was drawn for, in pixels.
        ops: (rows, steps) int64, the operations of each row in order, as positions in `OPERATIONS`.
            One step in mode "single", at most four in mode "composite", none for the strategy "none".
        brightness: (rows,) what is added to every value.
        saturation: (rows,) factor of the distance from the mean over channels.
        contrast: (rows,) factor of the distance from the image's mean.
        offset: (rows, 2) int64, shift in pixels, rows then columns.
        hole: (rows, 4) int64, top, left, bottom, right of the zeroed rectangle, not yet clipped.
        mirrored: (rows,) bool.
        factor: (rows, 2) scale of the sampling grid, columns then rows; above 1 shrinks the picture.
        angle: (rows,) radians.
    """

    size: tuple[int, int]
    ops: Tensor
    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    offset: Tensor
    hole: Tensor
    mirrored: Tensor
    factor: Tensor
    angle: Tensor

    def __len__(self) -> int:
        return len(self.ops)

    def __eq__(self, other: object) -> bool:
        """Whether both replay identically: same size, operations and parameters."""
        if not isinstance(other, DsaRecord):
            return NotImplemented
        pairs = ((getattr(self, name), getattr(other, name)) for name in _FIELDS)
        return self.size == other.size and all(torch.equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]

    def select(self, rows: Tensor) -> DsaRecord:
        """The record whose row i is this one's row rows[i]; rows is an integer or boolean tensor."""
        return self._map(lambda t: t[rows.to(t.device)])

    def to(self, device: torch.device | str) -> DsaRecord:
        """The same record on another device."""
        return self._map(lambda t: t.to(device))

    def state(self) -> dict[str, Tensor]:
        """Named tensors that safetensors can hold; `from_state` is the inverse."""
        return {"size": torch.tensor(self.size), **{name: getattr(self, name) for name in _FIELDS}}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> DsaRecord:
        """The record that `state` described.

        Raises:
            InputError: a tensor is missing.
        """
        absent = [name for name in ("size", *_FIELDS) if name not in state]
        if absent:
            raise InputError(f"This is not a stored augmentation record: it lacks {', '.join(absent)}.")
        height, width = state["size"].tolist()
        return cls((int(height), int(width)), **{name: state[name] for name in _FIELDS})

    @classmethod
    def concatenate(cls, records: list[DsaRecord]) -> DsaRecord:
        """Records of one image size and number of steps, one after the other."""
        tables = {name: torch.cat([getattr(r, name) for r in records]) for name in _FIELDS}
        return cls(records[0].size, **tables)

    def _map(self, change: Callable[[Tensor], Tensor]) -> DsaRecord:
        return DsaRecord(self.size, **{name: change(getattr(self, name)) for name in _FIELDS})


@dataclass(frozen=True)
class Dsa:
    """Differentiable siamese augmentation: what may be drawn and how strong it is.

    Raises:
        InputError: an unknown or repeated operation, an unknown mode, or a strength out of range.
    """

    strategy: str = "color_crop_cutout_flip_scale_rotate"  #: operations joined by "_", or "none"
    #: "single": one operation per row, uniformly; "multiple": all of them in order; "composite", as IDC does
    #: (arXiv:2205.14959): flip, color, one of crop, scale and rotate, uniformly, then cutout, as far as in the strategy
    mode: str = "single"
    brightness: float = 1.0  #: width of the uniform, zero-mean addition
    saturation: float = 2.0  #: the factor is uniform in [0, saturation]
    contrast: float = 0.5  #: the factor is uniform in [contrast, 1 + contrast]
    crop: float = 0.125  #: largest shift as a fraction of each side
    cutout: float = 0.5  #: side of the hole as a fraction of each side
    scale: float = 1.2  #: each axis is scaled uniformly in [1 / scale, scale]
    rotate: float = 15.0  #: largest angle, degrees

    def __post_init__(self) -> None:
        for name in self.ops:
            if name not in OPERATIONS:
                raise InputError(f"Unknown augmentation {name!r} in {self.strategy!r}. {nearest(name, OPERATIONS)}")
        if len(set(self.ops)) < len(self.ops):
            raise InputError(f"The augmentation strategy {self.strategy!r} names an operation twice.")
        if self.mode not in ("single", "multiple", "composite"):
            raise InputError(f"Unknown augmentation mode {self.mode!r}; use 'single', 'multiple' or 'composite'.")
        low = min(self.brightness, self.saturation, self.contrast, self.crop, self.cutout, self.rotate)
        if low < 0 or self.crop > 1 or self.cutout > 1 or self.scale < 1:
            raise InputError(
                "Augmentation strengths must not be negative, crop and cutout at most 1, scale at least 1."
            )

    @property
    def ops(self) -> tuple[str, ...]:
        """The operations of the strategy, in order; empty for "none"."""
        return _split(self.strategy)

    def draw(
        self, rows: int, shape: tuple[int, int, int], generator: torch.Generator, one_op: bool = False
    ) -> DsaRecord:
        """Draw operations and parameters.

        Args:
            rows: how many independent rows: classes when siamese, images otherwise.
            shape: channels, height and width of the images.
            generator: a CPU generator; the record is drawn on the CPU and moved by `apply`.
            one_op: one choice of operation for all rows with parameters per row, as networks are trained;
                otherwise each row has a choice of its own. Mode "multiple" has no choice.
        """
        _, height, width = shape
        u = torch.rand(rows, 13, dtype=torch.float64, generator=generator)  # floats exact enough for floor()
        return DsaRecord(
            (height, width),
            self._operations(u[:1, 0].expand(rows) if one_op else u[:, 0]),
            brightness=((u[:, 1] - 0.5) * self.brightness).float(),
            saturation=(u[:, 2] * self.saturation).float(),
            contrast=(u[:, 3] + self.contrast).float(),
            offset=torch.stack([self._offset(u[:, 4], height), self._offset(u[:, 5], width)], 1),
            hole=torch.stack([*self._hole(u[:, 6], height), *self._hole(u[:, 7], width)], 1)[:, [0, 2, 1, 3]],
            mirrored=u[:, 8] < 0.5,
            factor=(1 / self.scale + u[:, 9:11] * (self.scale - 1 / self.scale)).float(),
            angle=((u[:, 11] - 0.5) * 2 * self.rotate * (math.pi / 180)).float(),
        )

    def apply(self, x: Tensor, record: DsaRecord, rows: Tensor | None = None) -> Tensor:
        """Augment images; the same as the function `apply`, since a record says everything."""
        return apply(x, record, rows)

    def _operations(self, u: Tensor) -> Tensor:
        """Ids of operations (rows, steps), chosen among each step's alternatives by uniform numbers u (rows,)."""
        steps = [
            torch.tensor([OPERATIONS.index(name) for name in names])[_integer(u, 0, len(names) - 1)]
            for names in self._alternatives()
        ]
        return torch.stack(steps, 1) if steps else torch.zeros(len(u), 0, dtype=torch.int64)

    def _alternatives(self) -> list[tuple[str, ...]]:
        """For every step the operations of which one is applied."""
        if self.mode == "multiple":
            return [(name,) for name in self.ops]
        if self.mode == "single":
            return [self.ops] if self.ops else []
        geometric = tuple(name for name in self.ops if name in _GEOMETRIC)
        steps = (("flip",), ("color",), geometric, ("cutout",))
        return [names for names in steps if names and set(names) <= set(self.ops)]

    def _offset(self, u: Tensor, side: int) -> Tensor:
        most = int(self.crop * side + 0.5)
        return _integer(u, -most, most)

    def _hole(self, u: Tensor, side: int) -> tuple[Tensor, Tensor]:
        length = int(self.cutout * side + 0.5)
        start = _integer(u, 0, side - length % 2) - length // 2
        return start, start + length


def apply(x: Tensor, record: DsaRecord, rows: Tensor | None = None) -> Tensor:
    """Augment images by a record; twice differentiable in x, which is never changed in place.

    Args:
        x: images, (n, c, h, w) float, on any device.
        record: what was drawn.
        rows: (n,) int64, the record's row for each image; None means row i for image i.

    Returns:
        Images of the same shape; x itself when nothing is to be done.

    Raises:
        InputError: the record was drawn for another image size or number of images.
    """
    if tuple(x.shape[-2:]) != record.size:
        raise InputError(f"The augmentation was drawn for {record.size} pixels, the images are {tuple(x.shape[-2:])}.")
    count = len(record) if rows is None else len(rows)
    if count != len(x):
        raise InputError(f"The augmentation has rows for {count} images, not for {len(x)}.")
    if rows is not None:
        rows = rows.to(record.ops.device)
    for step in range(record.ops.shape[1] if len(x) else 0):
        ops = record.ops[:, step] if rows is None else record.ops[rows, step]
        x = _one_step(x, record, ops, rows)
    return x


def without_flip(strategy: str) -> str:
    """The strategy without "flip", as digits and text need it; "none" when nothing else is left."""
    return "_".join(name for name in _split(strategy) if name != "flip") or "none"


def _split(strategy: str) -> tuple[str, ...]:
    return () if strategy in ("", "none") else tuple(strategy.split("_"))


def _one_step(x: Tensor, record: DsaRecord, ops: Tensor, rows: Tensor | None) -> Tensor:
    """One operation per image; images are gathered by operation, at most one group for each."""
    present = torch.bincount(ops, minlength=len(OPERATIONS)).nonzero()[:, 0].tolist()
    if len(present) == 1:
        return _apply_op(x, OPERATIONS[present[0]], record, rows)
    groups = [(ops == op).nonzero()[:, 0] for op in present]
    parts = []
    for op, group in zip(present, groups, strict=True):
        table_rows = group if rows is None else rows[group]
        parts.append(_apply_op(x.index_select(0, group.to(x.device)), OPERATIONS[op], record, table_rows))
    back = torch.cat(groups).argsort()
    return torch.cat(parts).index_select(0, back.to(x.device))


def _apply_op(x: Tensor, name: str, record: DsaRecord, rows: Tensor | None) -> Tensor:
    values = []
    for parameter in _PARAMETERS[name]:
        value = getattr(record, parameter)
        value = (value if rows is None else value[rows]).to(x.device)
        values.append(value.to(x.dtype) if value.is_floating_point() else value)
    return _APPLY[name](x, *values)


def _integer(u: Tensor, low: int, high: int) -> Tensor:
    """Uniform integers low..high, both included, from uniform numbers in [0, 1)."""
    return (u * (high - low + 1)).floor().long() + low
