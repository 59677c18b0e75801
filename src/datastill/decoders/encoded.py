"""Stored images in fewer bits: patches on a few scales, and all of it through an entropy coder.

Every patch of an image, all channels together, belongs to a group, and x = low_g + step_g q with q of `bits` bits
(after arXiv:2603.13346). With 8 bits and one group on [0, 1] these are 8-bit pixels, exactly. Of frequency codes every
frequency of every channel is a patch. Group numbers and q go through LZMA, whose range coder is near their entropy.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Codes, Synthetic
from datastill.decoders.dct import Dct
from datastill.decoders.multi_formation import MultiFormation
from datastill.decoders.pixels import Pixels

#: Decoders of what can be encoded, and the leaf that each has.
INNER = {"pixels": Pixels, "multi_formation": MultiFormation, "dct": Dct}
LEAVES = {"pixels": "images", "multi_formation": "images", "dct": "coefficients"}
_FILTERS = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}]


@dataclass(frozen=True)
class Encoded:
    """One leaf, `blob` (n, k) of bytes: the stream of all images, cut into a row for each.

    Raises:
        InputError: an option that is none of an encoding; when decoding, a stream that is damaged.
    """

    #: of a stored image: channels, height, width; of frequency codes: instances, channels, frequencies
    shape: Sequence[int]
    low: Sequence[float]  #: of each group: the least value
    step: Sequence[float]  #: of each group: the distance of two values
    length: int  #: bytes of the stream
    patch: int = 0  #: side of a patch in pixels; 0 is the whole image
    mean: Sequence[float] | None = None  #: per channel, with `std`: values are pixels, normalized for the inner decoder
    std: Sequence[float] | None = None
    inner: Mapping[str, Any] | None = None  #: the decoder of the stored images, as it describes itself; None is pixels

    def __post_init__(self) -> None:
        for name in ("shape", "low", "step", "mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        sizes = [*self.shape, self.length]
        whole = all(isinstance(s, int) and not isinstance(s, bool) and 1 <= s <= 2**40 for s in sizes)
        if len(self.shape) != 3 or not whole or not isinstance(self.patch, int) or self.patch < 0:
            raise InputError("An encoding needs the channels, height and width of its images, and its length in bytes.")
        if not 1 <= len(self.low) == len(self.step) <= 256 or not all(map(math.isfinite, (*self.low, *self.step))):
            raise InputError("An encoding has from 1 to 256 groups, each with a least value and a step.")
        if {len(v) for v in (self.mean, self.std) if v is not None} not in (set(), {self.shape[0]}):
            raise InputError("An encoding of normalized images needs one mean and one std per channel.")
        self._inner()

    def encode(self, images: Tensor) -> Codes:
        """Not while a set is made: see `encoded`."""
        raise InputError("Images are encoded when a set is finished: `datastill export --to encoded`.")

    def draw(self, generator: torch.Generator) -> None:
        """Nothing random."""
        return None

    def decode(self, codes: Codes, y: Tensor, record: Any = None) -> Synthetic:
        """The images that are stored, through the decoder that they were made with."""
        blob = codes["blob"]
        images = self._images(blob.cpu().numpy().tobytes()[: self.length], len(blob)).to(blob.device)
        if self.mean is not None and self.std is not None:
            mean, std = (torch.tensor(v, device=blob.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
            images = (images - mean) / std
        return self._inner().decode({self._leaf: images}, y)

    def backward(self, codes: Codes, y: Tensor, record: Any, grads: Tensor) -> Codes:
        """There is no gradient of bytes."""
        raise InputError("An encoded set is finished: distill from pixels, and export again.")

    def rendered(self, shapes: Mapping[str, Sequence[int]], ipc: int, classes: int) -> tuple[int, int, int, int]:
        """As the inner decoder has it.

        Raises:
            InputError: there is no such leaf, or it is shorter than the stream.
        """
        found = tuple(shapes.get("blob", ()))
        if len(found) != 2 or 0 in found or math.prod(found) < self.length:
            raise InputError(f"The stream of an encoding is {list(found)}, and {self.length} bytes are needed.")
        return self._inner().rendered({self._leaf: (found[0], *self.shape)}, ipc, classes)

    def project(self, codes: Codes, context: Context, when: str) -> None:
        """Nothing moves."""

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        values = {name: getattr(self, name) for name in ("shape", "low", "step", "mean", "std")}
        lists = {name: None if value is None else list(value) for name, value in values.items()}
        return {"decoder": "encoded", **lists, "length": self.length, "patch": self.patch, "inner": self.inner}

    @property
    def _leaf(self) -> str:
        return LEAVES[str((self.inner or {}).get("decoder", "pixels"))]

    def _inner(self) -> Pixels | MultiFormation | Dct:
        record = dict(self.inner or {"decoder": "pixels"})
        kind = INNER.get(str(record.pop("decoder", "")))
        if kind is None:
            raise InputError(f"An encoding holds images of {' or '.join(INNER)}, not of {self.inner!r}.")
        try:
            return kind(**record)
        except TypeError as error:
            raise InputError("The decoder inside an encoding has options that this datastill does not know.") from error

    def _images(self, stream: bytes, n: int) -> Tensor:
        c, h, w = self.shape
        where = patches_of(h, w, self.patch)
        groups, values = n * (int(where.max()) + 1) if len(self.low) > 1 else 0, n * c * h * w
        raw = np.frombuffer(_decompressed(stream, groups + values), np.uint8)
        q = torch.from_numpy(raw[groups:].astype(np.float32)).view(n, c, h, w)
        table = torch.tensor([self.low, self.step])
        if not groups:
            return table[0, 0] + table[1, 0] * q
        group = torch.from_numpy(raw[:groups].astype(np.int64)).view(n, -1)
        if int(group.max()) >= len(self.low):
            raise InputError("The stream of an encoding names a group that it does not have; it is damaged.")
        low, step = (per_pixel(row, group, where, (h, w)) for row in table)
        return low + step * q


def stream_of(group: Tensor | None, q: Tensor) -> bytes:
    """The stream of values q (n, c, h, w) and groups of patches (n, p), both uint8; no groups where there is one."""
    raw = b"" if group is None else group.numpy().tobytes()
    return lzma.compress(raw + q.contiguous().numpy().tobytes(), lzma.FORMAT_RAW, filters=_FILTERS)


def patches_of(height: int, width: int, side: int) -> Tensor:
    """Which patch every pixel is in, (height * width,): rows of patches, the last of a row or column may be cut off."""
    if not side:
        return torch.zeros(height * width, dtype=torch.int64)
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    return (rows[:, None] * (int(columns[-1]) + 1) + columns).flatten()


def _decompressed(stream: bytes, size: int) -> bytes:
    """Exactly `size` bytes of a stream, never more than that."""
    try:
        made = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(stream, max_length=size + 1)
    except (lzma.LZMAError, EOFError, MemoryError) as error:
        raise InputError(f"The stream of an encoding is damaged ({error}).") from error
    if len(made) != size:
        raise InputError(f"The stream of an encoding is damaged: it has not the {size} bytes of its images.")
    return made


DECODER = Encoded


def per_pixel(row: Tensor, group: Tensor, where: Tensor, size: tuple[int, int]) -> Tensor:
    """A number of each group (g,), for every pixel of images whose patches are in these groups, (n, 1, h, w).

    Args:
        row: the numbers.
        group: of patches, (n, p).
        where: patch of each pixel, (h * w,).
        size: height and width.
    """
    return row[group][:, where].view(len(group), 1, *size)
