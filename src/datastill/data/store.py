"""How the images of a real set are kept: in memory, memory-mapped, or decoded whenever they are asked for.

A store keeps pixels and knows nothing of labels or Spaces. All kinds give the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.store.opening import map_array

CHUNK_BYTES = 32 << 20  #: how much is read at once where a whole store is walked


class Store(Protocol):
    """Images that can be fetched by position."""

    #: (channels, height, width) of every image
    shape: tuple[int, int, int]
    #: position -> what an image is called in its source; None where images have no names
    called: Callable[[int], str] | None = None

    def __len__(self) -> int: ...

    def __getstate__(self) -> dict[str, Any]:
        """Without the names, which may hang on open files."""
        return {name: value for name, value in vars(self).items() if name != "called"}

    def name_of(self, i: int) -> str:
        """What the image at a position is called in its source, such as its file; "" where it has no name."""
        return "" if self.called is None else self.called(i)

    def stored(self, index: Tensor) -> Tensor:
        """The images at `index` (n,) as they are kept: (n, c, h, w) uint8 of 0..255 or float32 of [0, 1]."""
        ...

    def get(self, index: Tensor) -> Tensor:
        """The images at `index` (n,) int64 as pixels: (n, c, h, w) float32 in [0, 1]."""
        return as_pixels(self.stored(index))

    def chunks(self) -> Iterator[Tensor]:
        """All images in order, as `stored`, a few megabytes at a time."""
        step = max(1, CHUNK_BYTES // int(np.prod(self.shape)))
        for start in range(0, len(self), step):
            yield self.stored(torch.arange(start, min(start + step, len(self))))

    def content(self) -> str:
        """A hash of the images in their order; computed once."""
        known = self.__dict__.get("_content")
        if known is None:
            sha = hashlib.sha256(f"{len(self)}:{tuple(self.shape)}".encode())
            for chunk in self.chunks():
                sha.update(str(chunk.dtype).encode())
                sha.update(chunk.contiguous().numpy().data)
            known = self.__dict__["_content"] = sha.hexdigest()
        return known


def as_pixels(stored: Tensor) -> Tensor:
    """uint8 of 0..255 to float32 in [0, 1]; floats as they are."""
    return stored.float().div_(255) if stored.dtype == torch.uint8 else stored.float()


class MemoryStore(Store):
    """Images in memory.

    Args:
        images: (n, c, h, w), uint8 of 0..255 or float32 in [0, 1].
    """

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
            raise InputError(
                f"A store needs (n, c, h, w) images of uint8 or float32, not {tuple(images.shape)} {images.dtype}."
            )
        self.images = images.contiguous()
        _, c, h, w = images.shape
        self.shape = (c, h, w)

    def __len__(self) -> int:
        return len(self.images)

    def stored(self, index: Tensor) -> Tensor:
        return self.images[index]


class MemmapStore(Store):
    """Images in a `.npy` file of (n, c, h, w) uint8 or float32 that is memory-mapped, never read whole."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.array = map_array(self.path)
        if self.array.ndim != 4:
            raise InputError(f"{self.path} holds {self.array.shape} and no images (n, c, h, w).")
        _, c, h, w = self.array.shape
        self.shape = (c, h, w)

    def __len__(self) -> int:
        return len(self.array)

    def stored(self, index: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self.array[index.numpy()]))


class DecodeStore(Store):
    """Images that are decoded at every access.

    Args:
        count: how many images.
        shape: (c, h, w) of every image.
        decode: position -> (c, h, w) array, uint8 of 0..255 or float32 in [0, 1].
    """

    def __init__(self, count: int, shape: tuple[int, int, int], decode: Callable[[int], np.ndarray]) -> None:
        self.count, self.shape, self.decode = count, shape, decode

    def __len__(self) -> int:
        return self.count

    def stored(self, index: Tensor) -> Tensor:
        if not len(index):
            return torch.zeros((0, *self.shape), dtype=torch.uint8)
        images = [self.decode(i) for i in index.tolist()]
        for position, image in zip(index.tolist(), images):
            if image.shape != tuple(self.shape):
                raise InputError(
                    f"Image {position} is {image.shape} and the others are {self.shape}; "
                    "the source has changed since it was loaded, so load it again."
                )
        return torch.from_numpy(np.stack(images))


class SubsetStore(Store):
    """Some images of another store, by position, without a copy."""

    store: Store
    rows: Tensor

    def __init__(self, store: Store, rows: Tensor) -> None:
        self.store, self.rows, self.shape = store, rows, store.shape
        if isinstance(store, SubsetStore):
            self.store, self.rows = store.store, store.rows[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def name_of(self, i: int) -> str:
        return self.store.name_of(int(self.rows[i]))

    def stored(self, index: Tensor) -> Tensor:
        return self.store.stored(self.rows[index])
