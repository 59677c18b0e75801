"""Whether there is anything in the pixels of a split: what does not vary cannot be learned from."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.data.raw import Split
from datastill.data.store import CHUNK_BYTES, DecodeStore, Store

LOOKED_AT = 512  #: images that are looked at, evenly spread
DECODED = 128  #: as many where each must be decoded for it
#: Pixels of a set that spread over less than so much of 0..1 hold nothing: 12 bits in files of 16 fill no more, arrays
#: of 0 and 1 that are read as 0..255 less.
LEAST_RANGE = 16.5 / 255
#: Means and spreads that no usual set has: MNIST's are 0.13 and 0.31, sketches on white have a mean of 0.92.
MEANS = (0.01, 0.99)
LEAST_SPREAD = 0.02
#: Share of images of a single color above which a note is left.
FLAT = 0.05
SAME = 10  #: from so many images on, all must not be the same


@dataclass(frozen=True)
class Pixels:
    """Numbers of the images that were looked at, in 0..1."""

    images: int
    low: float
    high: float
    mean: float
    std: float
    flat: tuple[int, ...]  #: positions of images of a single color
    same: bool  #: whether all images are equal


def look_at(store: Store) -> Pixels:
    """Range, mean and spread of evenly spread images of a store."""
    most = DECODED if isinstance(store, DecodeStore) else LOOKED_AT
    fitting = CHUNK_BYTES // math.prod(store.shape)
    return _numbers(store, _spread(len(store), max(SAME, min(most, fitting))))


def _spread(count: int, most: int) -> Tensor:
    return torch.arange(count) if count <= most else torch.linspace(0, count - 1, most).long()


def _numbers(store: Store, rows: Tensor) -> Pixels:
    stored = store.stored(rows)
    unit = 255.0 if stored.dtype == torch.uint8 else 1.0
    flat = stored.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    values = flat.float()
    mean = float(values.mean())
    std = max(0.0, float(values.square_().mean()) - mean**2) ** 0.5
    return Pixels(
        images=len(rows),
        low=float(low.min()) / unit,
        high=float(high.max()) / unit,
        mean=mean / unit,
        std=std / unit,
        flat=tuple(rows[low == high].tolist()),
        same=torch.equal(flat[0], flat[-1]) and bool((flat == flat[:1]).all()),
    )


def check_pixels(split: Split, where: str) -> list[str]:
    """Refuse images that do not vary; notes, which are warned of too, on those that hardly do.

    Args:
        split: what was read.
        where: names the split.

    Raises:
        InputError: all pixels are alike, or all images are the same.
    """
    found = look_at(split.store)
    if found.high - found.low < LEAST_RANGE and _all_within(split.store):
        raise InputError(
            f"The {where} images hold nothing: all pixels lie between {255 * found.low:.4g} and {255 * found.high:.4g} "
            f"of 255{_such_as(split, 0)}; a shape in the alpha channel alone, 12 bits in files of 16, a black first "
            "frame and arrays of 0 and 1 look so, and are to be turned into pixels of 0 to 255 first."
        )
    if found.same and len(split.store) >= SAME and found.images == len(split.store):
        raise InputError(f"All {len(split.store)} {where} images are the same{_such_as(split, 0)}; check the files.")
    notes = []
    if len(found.flat) > FLAT * found.images:
        notes.append(
            f"{len(found.flat)} of {found.images:,} {where} images that were looked at are of a single "
            f"color{_such_as(split, found.flat[0])}"
        )
    if not MEANS[0] < found.mean < MEANS[1] or found.std < LEAST_SPREAD:
        notes.append(
            f"the pixels of the {where} images have mean {found.mean:.3g} and standard deviation {found.std:.3g} in "
            f"[{found.low:.3g}, {found.high:.3g}], which sets of images seldom have; look at them with `datastill data`"
        )
    for note in notes:
        warnings.warn(note, stacklevel=4)
    return notes


def _all_within(store: Store) -> bool:
    """Whether the whole of a store spreads as little as what was looked at."""
    low, high = 1.0, 0.0
    for chunk in store.chunks():
        unit = 255.0 if chunk.dtype == torch.uint8 else 1.0
        low, high = min(low, float(chunk.min()) / unit), max(high, float(chunk.max()) / unit)
        if high - low >= LEAST_RANGE:
            return False
    return True


def _such_as(split: Split, position: int) -> str:
    name = split.store.name_of(position)
    return f", such as {name}" if name else ""
