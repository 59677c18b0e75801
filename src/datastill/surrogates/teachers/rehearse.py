"""What a squeeze would take: a few of its updates, timed, and a teacher that is good for timing steps alone."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.plan import silent
from datastill.core.rng import Rng
from datastill.surrogates.teachers.teacher import Teacher

if TYPE_CHECKING:
    from datastill.core.plan import Task
    from datastill.data.real import RealSet
    from datastill.surrogates.teachers.sources import Squeeze

#: At least and at most so many updates are timed.
_LEAST, _MOST = 3, 500


class Untrained(Teacher):
    """A stand-in that is never tried: only what its passes cost is of interest."""

    def check(self, real: RealSet, device: torch.device, brought: bool = True) -> float:
        """Right by definition."""
        return 1.0


class _Enough(Exception):
    """Ends a training whose updates have been timed."""


def rehearse(squeeze: Squeeze, task: Task, seconds: float = 0.5) -> tuple[Teacher, float]:
    """A teacher that saw a few batches, and the seconds that all updates of a squeeze would take.

    Args:
        seconds: to time updates for; longer, where three take longer.
    """
    network = task.network(Rng(task.seed).derive("rehearsal")).to(task.device)
    times = list[float]()

    def on_batch(index: Tensor, logits: Tensor) -> None:
        float(logits[0, 0])  # wait for the device
        times.append(time.perf_counter())
        if len(times) > _MOST or (len(times) > _LEAST and times[-1] - times[0] > seconds):
            raise _Enough

    with contextlib.suppress(_Enough):
        quiet = replace(task, runtime=replace(task.runtime, progress=silent))
        replace(squeeze, passes=_MOST).fit(quiet, network, on_batch)
    real = task.real
    size = (real.shape[1], real.shape[2])
    stand_in = Untrained(network.eval(), real.space, real.class_names, real.shape[0], size, str(task.network))
    return stand_in, squeeze.updates(task) * (times[-1] - times[0]) / (len(times) - 1)
