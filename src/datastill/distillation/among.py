"""What each rank does of a run that several share under torchrun: the first one all of it, the others the loop."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datastill._version import __version__
from datastill.core.errors import InputError
from datastill.core.plan import Callback, silent
from datastill.core.ranks import Ranks
from datastill.distillation.job import Job
from datastill.distillation.parallel import Spread
from datastill.store.files import digest

#: Hooks that change what a step computes, and so are called in every rank.
_CHANGING = ("before_real_batch", "after_net_update")


def among(
    ranks: Ranks, job: Job, folder: Path | None, callbacks: Sequence[Callback], spread: Spread, budget: float | None
) -> tuple[Job, Path | None, Sequence[Callback]]:
    """Job, folder and callbacks of this rank, once all have come so far: the first alone writes, prints and looks on.

    Raises:
        InputError: what was asked for goes by one process alone.
        RankFailed: another rank has not come so far.
    """
    if ranks.alone:
        return job, folder, callbacks
    if budget is not None:
        raise InputError("A budget is measured by one process; under torchrun give --steps instead.")
    if spread.pooled:
        raise InputError("Under torchrun ranks share the classes of every step; leave out --workers and --shard.")
    here = torch.cuda.device_count()
    if job.task.device.type == "cuda" and int(os.environ.get("LOCAL_RANK", "0")) >= here:
        raise InputError(
            f"This machine has {here} GPU{'s' * (here > 1)} and more ranks than that; start --nproc-per-node {here} "
            "or take --device cpu."
        )
    ranks.meet()
    runtime = replace(job.task.runtime, ranks=ranks)
    if not ranks.first:
        runtime = replace(runtime, progress=silent)
        callbacks = [one for one in callbacks if _changes(one)]
        folder = None
    task = replace(job.task, runtime=runtime, folder=job.task.folder if ranks.first else None)
    return replace(job, task=task), folder, callbacks


def _changes(callback: Callback) -> bool:
    return any(getattr(type(callback), name) is not getattr(Callback, name) for name in _CHANGING)


def refuse_differing(ranks: Ranks, config: Mapping[str, Any]) -> None:
    """Refuse ranks that were started with other settings, data or versions: each would make a set of its own.

    Args:
        ranks: of the run.
        config: all that the result of this one depends on.

    Raises:
        InputError: they differ; the first field that does is named.
    """
    told = ranks.meet({name: digest(value) for name, value in {**config, "version": __version__}.items()})
    for name in told[0]:
        if len({one.get(name) for one in told}) > 1:
            raise InputError(
                f"The ranks of this run were started with another {name}, so each would make a set of its own; start "
                "all of them with the same command, data, seed and version."
            )
