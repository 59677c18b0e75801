"""Randomness without state: every draw has its own generator, derived by hash from the run's seed.

`Rng(seed).generator("real", block, step)` is the same generator in every process, on every resume and
whatever else was drawn before it. So there is no generator state to save, an added draw shifts nothing
else, and two arms of a comparison that name the same purpose share their draws.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

Key = int | str


@dataclass(frozen=True)
class Rng:
    """A family of generators, one per (purpose, key...)."""

    seed: int

    def derive(self, purpose: str, *key: Key) -> int:
        """A 63-bit seed for one purpose; distinct keys give independent seeds."""
        text = "\x1f".join([str(self.seed), purpose, *(f"{type(k).__name__}:{k}" for k in key)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self, purpose: str, *key: Key) -> torch.Generator:
        """A fresh CPU generator; draw on the CPU and move, so that devices agree."""
        return torch.Generator().manual_seed(self.derive(purpose, *key))

    def numpy(self, purpose: str, *key: Key) -> np.random.Generator:
        """A fresh numpy generator."""
        return np.random.default_rng(self.derive(purpose, *key))

    def child(self, purpose: str, *key: Key) -> Rng:
        """An independent family, for a part that derives keys of its own."""
        return Rng(self.derive(purpose, *key))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put Python's and numpy's global generators back afterwards; some libraries draw from them when imported."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run code that can only draw from the global generator (module construction, dropout).

    The global states are what they were before, afterwards. This is the only place in the library
    that seeds the global generator.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
