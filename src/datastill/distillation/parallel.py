"""Blocks of a run over several processes: each writes its checkpoint, which the run then puts together."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError, ShareDone
from datastill.core.loop import run_block
from datastill.core.plan import Block, Plan, Progress, silent
from datastill.data.shared import shared
from datastill.distillation.job import Job
from datastill.launch import Done, Unit, Workers, check_workers, run_units
from datastill.store.checkpoint import Checkpointer
from datastill.store.files import write_text
from datastill.store.folders import held


@dataclass(frozen=True)
class _Work:
    """What a process needs to recover a block."""

    job: Job
    prepared: dict[str, dict[str, Tensor]]
    folder: Path
    config: Mapping[str, Any]
    every_seconds: float


@dataclass(frozen=True)
class Spread:
    """Over how many processes the blocks of a run go, and which of them are recovered here."""

    workers: int | str = 1
    shard: tuple[int, int] | None = None

    @property
    def pooled(self) -> bool:
        """Whether blocks run as units, one torch thread each."""
        return Workers.of(self.workers).several or self.shard is not None

    @contextlib.contextmanager
    def holding(self, folder: Path | None) -> Iterator[None]:
        """Hold the run's folder, with the other shares of the run only.

        Raises:
            InputError: another command is at work in it.
        """
        with contextlib.ExitStack() as stack:
            if folder is not None:
                stack.enter_context(held(folder, shared=self.shard is not None))
            if folder is not None and self.shard is not None:
                stack.enter_context(held(folder, name=f".datastill.share-{self.shard[0]}-of-{self.shard[1]}.lock"))
            yield

    def check(self, folder: Path | None) -> None:
        """Refuse what cannot be.

        Raises:
            InputError: no folder to meet in; a share that is none.
        """
        check_workers(self.workers)
        if self.pooled and folder is None:
            raise InputError("Blocks over several processes meet in the run's folder; give out (--out).")
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise InputError(
                f"A share of the blocks is i/n with i from 0 to n - 1, not {self.shard[0]}/{self.shard[1]}."
            )


def blocks_of(plan: Plan, job: Job, shard: tuple[int, int] | None = None) -> list[Block]:
    """The blocks of a plan, or those of one of several shares of it: block k is in share k mod n."""
    blocks = list(plan.partition.blocks(job.task.labels))
    return blocks if shard is None else [b for k, b in enumerate(blocks) if k % shard[1] == shard[0]]


def run_apart(
    job: Job, plan: Plan, prepared: dict[str, dict[str, Tensor]], checkpointer: Checkpointer, spread: Spread
) -> None:
    """Recover blocks in other processes, or a share of them, which ends the run (`ShareDone`)."""
    if torch.get_num_threads() != 1:
        raise InputError(
            "This run began with several torch threads, and blocks in other processes have one, which rounds "
            "otherwise; resume it without workers."
        )
    blocks = blocks_of(plan, job, spread.shard)
    in_processes(job, blocks, prepared, checkpointer, spread.workers, job.task.progress)
    if spread.shard is not None:
        i, n = spread.shard
        raise ShareDone(
            f"Share {i}/{n} is done: {len(blocks)} of {len(blocks_of(plan, job))} blocks, in {checkpointer.folder}. "
            "When all shares are, the same without a share, and with --resume, puts the set together."
        )


def in_processes(
    job: Job,
    blocks: list[Block],
    prepared: dict[str, dict[str, Tensor]],
    checkpointer: Checkpointer,
    workers: int | str,
    progress: Progress = silent,
) -> None:
    """Recover the blocks that are not finished, one torch thread each; images do not depend on `workers`.

    Raises:
        InputError: the network or the method exists in this process alone.
        Interrupted: Ctrl-C; finished blocks and checkpoints are kept.
        UnitsFailed: some blocks failed; the others are kept.
    """

    def on_done(done: Done) -> None:
        progress("blocks", done.done, done.total, {})

    with shared(job.task.real, checkpointer.folder) as real:
        quiet = replace(job.task.runtime, progress=silent)
        task = replace(job.task, real=real, runtime=quiet)
        work = _Work(
            replace(job, task=task), prepared, checkpointer.folder, checkpointer.config, checkpointer.every_seconds
        )
        try:
            packed = pickle.dumps(work)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"Workers build method and network by their names, and one of them exists in this process alone "
                f"({error}); give it by a name or as an importable class, or take workers=1."
            ) from error
        units = [
            Unit(f"block {b.key}", (packed, b.key), checkpointer.folder / f"block-{b.key:05d}.done") for b in blocks
        ]
        run_units(recover, units, workers=workers, on_done=on_done)


def recover(packed: bytes, key: int, target: Path) -> None:
    """Run one block to its end, from its checkpoint if there is one; a unit of `launch`."""
    work = _unpacked(packed)
    plan = work.job.plan()
    block = next(b for b in blocks_of(plan, work.job) if b.key == key)
    checkpointer = Checkpointer(work.folder, work.config, work.every_seconds)
    run_block(plan, work.job.task, block, (), checkpointer, work.prepared)
    write_text(target, "finished\n")


@lru_cache(maxsize=1)
def _unpacked(data: bytes) -> _Work:
    work: _Work = pickle.loads(data)
    return work
