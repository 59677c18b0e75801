"""How many threads a network deserves, from its size alone, so that a run is the same wherever it resumes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

#: Below this many multiply-accumulates an image, a layer is done before a second thread has woken up; on a
#: machine that is also doing something else, waiting for that thread made small networks 20 times slower.
SMALL_NETWORK_MACS = 5e6


@contextlib.contextmanager
def threads_for(macs: float) -> Iterator[int]:
    """Inside the block torch uses one thread for a small network, else as many as it has; yields the number."""
    before = torch.get_num_threads()
    wanted = 1 if macs < SMALL_NETWORK_MACS else before
    torch.set_num_threads(wanted)
    try:
        yield wanted
    finally:
        torch.set_num_threads(before)
