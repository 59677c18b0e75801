"""The learning rate of sets that come without one, under a protocol that takes learned ones (MTT's).

To train on some sets at a rate that they learned, and on the others at one that nobody chose, would favor the former.
So the others, Random first of all, get the best of a few rates for Random, as in `evaluate`: chosen once for a data set
and a size, on real training images held back.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from datastill.core.errors import InputError
from datastill.distillation.distill import run_job
from datastill.evaluation.protocols import Protocol
from datastill.evaluation.rates import learned_rate, with_rate
from datastill.experiments.records import RateRecord
from datastill.experiments.tuning import tune, validation_of
from datastill.sampling.inits import random_indices
from datastill.store.files import read_sealed, write_sealed

if TYPE_CHECKING:
    from datastill.distillation.job import Job
    from datastill.experiments.cells import Cell, Work
    from datastill.experiments.settings import Settings
    from datastill.store.artifact import DistilledSet

FORMAT = "datastill-rate"
FOLDER = "rates"


def may_come_without(job: Job, settings: Settings) -> bool:
    """Whether learned rates are taken and the sets of this job may have none: the rate is not a leaf."""
    leaves = job.own_plan.shared
    return settings.learned_lr and (callable(leaves) or "lr" not in leaves)


def choose_rate(work: Work, cell: Cell, target: Path) -> None:
    """Choose the rate of a data set and a size by the Randoms of all seeds, and write it down.

    Args:
        cell: Random's at that size, of any seed.
    """
    started = time.perf_counter()
    settings, real = work.settings, work.reals.get(cell.data)
    jobs = [work.job(replace(cell, seed=seed)) for seed in settings.seeds]
    without = torch.cat([random_indices(real, cell.ipc, seed) for seed in settings.seeds])
    validation = validation_of(real, without=without)
    rate, tried = tune(
        [run_job(job, None, (), math.inf) for job in jobs],
        validation,
        settings.protocol,
        work.reals.network(cell.data, settings.network),
        settings.protocol.lr,
        device=settings.device,
        precision=settings.precision,
        compile=settings.compile,
    )
    record = {
        "format": FORMAT,
        "version": 1,
        "data": cell.data,
        "ipc": cell.ipc,
        "seeds": list(settings.seeds),
        "protocol": settings.protocol.name,
        "lr": rate,
        "lr_tried": {f"{lr:g}": round(accuracy, 6) for lr, accuracy in tried.items()},
        "images": len(validation.known_test),
        "seconds": round(time.perf_counter() - started, 3),
    }
    write_sealed(target, record)


def chosen(path: Path) -> dict[str, Any]:
    """What `choose_rate` wrote.

    Raises:
        InputError: it is gone or damaged.
    """
    record = read_sealed(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("lr"), float):
        raise InputError(f"{path} does not hold a learning rate; remove it to choose one again.")
    RateRecord.of(record, path)
    return record


def protocol_of(work: Work, cell: Cell, made: DistilledSet) -> tuple[Protocol, dict[str, Any]]:
    """The protocol at the rate of a cell's set, and what its record says of it; nothing where none was chosen."""
    protocol = work.settings.protocol
    if not work.settings.learned_lr or learned_rate(made) is not None:
        return protocol, {}
    record = chosen(work.rate(cell))
    return with_rate(protocol, float(record["lr"])), {"lr_tried": record["lr_tried"]}
