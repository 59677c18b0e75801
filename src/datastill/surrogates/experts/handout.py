"""Work for other processes: the images in a file that all of them map, everything else as bytes."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datastill.core.errors import InputError
from datastill.core.files import make_folder, write_error
from datastill.data.store import MemmapStore, Store

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.surrogates.experts.job import Job


class SharedStore(MemmapStore):
    """A memory-mapped store that travels to another process as its path."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)


@contextmanager
def portable(job: Job, parallel: bool, folder: Path) -> Iterator[Job | bytes]:
    """The job as it is; or, for other processes, as bytes, with its images in a file until the block ends.

    Any real set can be handed out so, also one that no other process could load. (Sent through torch's own way, tensors
    would need shared memory, of which containers have little.)

    Raises:
        InputError: the network or policy exists in this process alone, or the disk is full.
    """
    if not parallel:
        yield job
        return
    with tempfile.TemporaryDirectory(prefix="images-", dir=make_folder(folder)) as name:
        real = _shared(job.real, Path(name) / "train.npy")
        test = None if job.real.test is None else _shared(job.real.test, Path(name) / "test.npy")
        try:
            packed = pickle.dumps(replace(job, real=replace(real, test=test)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"Workers build the network by its name, and {job.network} exists in this process alone ({error}); "
                "give it by a name or as an importable class, or take workers=1."
            ) from error
        yield packed


@lru_cache(maxsize=1)
def unpacked(data: bytes) -> Job:
    """What `portable` made bytes of, in the process that `launch` gave them to."""
    job: Job = pickle.loads(data)
    return job


def _shared(real: RealSet, path: Path) -> RealSet:
    return replace(real, store=_write(real.store, path), test=None)


def _write(store: Store, path: Path) -> SharedStore:
    """The images as they are stored, (n, c, h, w); plain writes, since a memory map would end at a full disk."""
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
