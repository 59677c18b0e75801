"""A small real set and a teacher of it, for tests of decoupled methods."""

from __future__ import annotations

from functools import lru_cache

import torch

from datastill import load_real
from datastill.core.plan import Task
from datastill.data.real import RealSet
from datastill.models import resolve_network
from datastill.surrogates.teachers import Squeeze, Teacher

NETWORK = "convnet:width=8,depth=2,norm=batch"


@lru_cache(maxsize=1)
def digits() -> RealSet:
    """The digits: 899 training images of 8 x 8."""
    return load_real("digits")


def task_of(real: RealSet, network: str = NETWORK, ipc: int = 2, seed: int = 0) -> Task:
    """A task without a folder."""
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, ipc, factory, seed)


@lru_cache(maxsize=1)
def prepared() -> dict[str, torch.Tensor]:
    """A squeeze of the digits, a second long."""
    return Squeeze(12, batch=64).run(task_of(digits()))


def teacher() -> Teacher:
    """A teacher of its own for every call, with its accuracy on test images, as the command measures it."""
    made = Squeeze(12, batch=64).teacher(task_of(digits()), prepared())
    made.record["accuracy"] = made.test_accuracy(digits(), torch.device("cpu"))
    return made
