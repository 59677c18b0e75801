"""What experts would take: a few updates of one, timed, and a buffer that is good for timing steps alone."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from datastill.core.precision import casting
from datastill.core.rng import Rng
from datastill.launch import one_thread
from datastill.store.files import digest
from datastill.surrogates.experts.files import write_expert
from datastill.surrogates.experts.job import Job, begin
from datastill.surrogates.experts.partial import State
from datastill.surrogates.experts.policies import Epoch
from datastill.surrogates.experts.train import training_set

if TYPE_CHECKING:
    from torch import nn

#: At least and at most so many updates are timed.
_LEAST, _MOST = 3, 500


@dataclass(frozen=True)
class Rehearsal:
    """What was timed.

    Attributes:
        path: a buffer of one expert of `span` epochs that is gone after the rehearsal.
        update_seconds: of one update of an expert, the mean: what else runs on the machine counts.
        epoch_seconds: to keep a snapshot at the end of an epoch.
    """

    path: Path
    update_seconds: float
    epoch_seconds: float


class _Enough(Exception):
    """Ends an epoch whose updates have been timed."""


@contextmanager
def rehearse(job: Job, seconds: float = 0.5) -> Iterator[Rehearsal]:
    """Time some updates of an expert of a job, on one thread, as experts are trained; nothing of it is kept.

    Args:
        seconds: to time updates for; longer, where three take longer.

    Raises:
        Diverged: an epoch ended with a loss that is not finite.
    """
    with tempfile.TemporaryDirectory(prefix="datastill-rehearsal-") as name:
        config = {**job.config, "epochs": job.span, "snapshots": job.span + 1}
        small = replace(job, folder=Path(name), epochs=job.span, last=job.span, config=config, lossy=False)
        with warnings.catch_warnings(), one_thread():
            warnings.simplefilter("ignore", UserWarning)  # the training itself shows them
            begin(small)
            network = small.network(Rng(job.seed).derive("rehearsal"))
            rows = [small.layout.flatten(network)]
            update = _updates(small, network.to(job.device), seconds)
            rows.append(small.layout.flatten(network))
            epoch = _snapshot(small, rows)
            moved = rows[1] - rows[0]
            path = (rows[0] + k * moved for k in range(job.span + 1))
            write_expert(small.folder, 0, small.layout, path, config=digest(config))
        yield Rehearsal(small.folder, update, epoch)


def _updates(job: Job, network: nn.Module, seconds: float) -> float:
    """The mean of the seconds between two updates."""
    data, times = training_set(job), list[float]()

    def on_batch(index: Tensor, logits: Tensor) -> None:
        float(logits[0, 0])  # wait for the device
        times.append(time.perf_counter())
        if len(times) > _MOST or (len(times) > _LEAST and times[-1] - times[0] > seconds):
            raise _Enough

    rng, state = Rng(job.seed).child("rehearsal"), dict[str, Tensor]()
    try:
        for e in range(_MOST):
            with casting(job.device, job.precision):
                job.policy.epoch(network, data, Epoch(e, job.epochs, rng.child("epoch", e), state, on_batch))
    except _Enough:
        pass
    return (times[-1] - times[0]) / (len(times) - 1)


def _snapshot(job: Job, rows: list[Tensor]) -> float:
    """The seconds that a snapshot and the state beside it take."""
    partial = job.partial(0)
    partial.begin(rows[0])
    started = time.perf_counter()
    partial.append(rows[1], State(epoch=1))
    taken = time.perf_counter() - started
    partial.remove()
    return taken
