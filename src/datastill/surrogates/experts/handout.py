"""Work for other processes: the images in a file that all of them map, everything else as bytes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from datastill.core.errors import InputError
from datastill.data.shared import shared

if TYPE_CHECKING:
    from datastill.surrogates.experts.job import Job


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
    with shared(job.real, folder) as real:
        try:
            packed = pickle.dumps(replace(job, real=real))
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
