"""A real set for other processes: its images in files that all of them map."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datastill.data.real import RealSet
from datastill.data.store import MemmapStore, Store
from datastill.store.files import make_folder, write_error

#: What lies in a folder of shared images.
SHARED_FILES = ("train.npy", "test.npy")


class SharedStore(MemmapStore):
    """A memory-mapped store that travels to another process as its path."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)


@contextmanager
def shared(real: RealSet, folder: Path) -> Iterator[RealSet]:
    """The set and its test split with their images in files below `folder` until the block ends.

    Any real set can be handed out so, also one that no other process could load. (Sent through torch's own way, tensors
    would need shared memory, of which containers have little.)

    Raises:
        InputError: the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="images-", dir=make_folder(folder)) as name:
        test = None if real.test is None else _moved(real.test, Path(name) / "test.npy")
        yield replace(_moved(real, Path(name) / "train.npy"), test=test)


def _moved(real: RealSet, path: Path) -> RealSet:
    return replace(real, store=_write(real.store, path), test=None)


def _write(store: Store, path: Path) -> SharedStore:
    """The images as they are stored, (n, c, h, w); plain writes, since a memory map would end at a full disk.

    A set that is mapped from disk already is handed out where it is: ImageNet is not copied for every run.
    """
    if isinstance(store, MemmapStore):
        return SharedStore(store.path)
    try:
        with open(path, "wb") as file:
            for chunk in store.chunks():
                images = chunk.contiguous().numpy()
                if not file.tell():
                    header = {"descr": images.dtype.str, "fortran_order": False, "shape": (len(store), *store.shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(images.tobytes())
    except OSError as error:
        raise write_error(path, error) from error
    return SharedStore(path)
