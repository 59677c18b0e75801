"""The units of a comparison: what several cells share is prepared once, then each cell is distilled and scored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datastill.core.cost import Stopwatch, environment, peak_memory_bytes
from datastill.core.errors import InputError
from datastill.core.registry import with_overrides
from datastill.core.runtime import Runtime
from datastill.core.threads import threads_for
from datastill.distillation.distill import run_job
from datastill.distillation.job import Job, prepare_job
from datastill.distillation.preparation import prepare as prepare_units
from datastill.distillation.preparation import prepared_path
from datastill.distillation.remarks import hyper_of
from datastill.evaluation import Evaluation, evaluate
from datastill.experiments.rates import FOLDER as RATES_FOLDER
from datastill.experiments.rates import protocol_of
from datastill.experiments.robust import FOLDER as WHOLE
from datastill.experiments.robust import scored_apart, seconds_of_whole
from datastill.experiments.settings import BASELINE, Settings
from datastill.experiments.sources import RealSets
from datastill.store.artifact import DistilledSet
from datastill.store.checkpoint import plain
from datastill.store.files import digest, read_tensors, seconds_of, write_sealed
from datastill.store.sizes import bytes_of_parts

FORMAT = "datastill-cell"
CELLS, RESULTS = "cells", "results"


@dataclass(frozen=True)
class Cell:
    """One method on one data set at one size from one seed."""

    data: str  #: label of the real set
    method: str
    ipc: int
    seed: int
    name: str = ""  #: of its folder and its result: readable, and a hash of all that it depends on

    @property
    def group(self) -> str:
        """What is alike over seeds."""
        return f"{self.data}, {self.method}, ipc {self.ipc}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.group}, seed {self.seed}"


@dataclass(frozen=True)
class Settled:
    """Hyper-parameters of a method on one data set at one size, the same for every seed."""

    hyper: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """What all units of a comparison share; it can be pickled.

    Attributes:
        settled: by the group of a cell.
        jobs: of cells that are yet to be run, settled in this process; another settles those that it runs.
    """

    out: Path
    reals: RealSets
    settings: Settings
    settled: Mapping[str, Settled]
    command: str | None
    jobs: dict[tuple[str, str, int, int], Job] = field(default_factory=dict, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "jobs": {}}

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.out / CELLS / cell.name

    def result(self, cell: Cell) -> Path:
        """The record of a cell, which is written last."""
        return self.out / RESULTS / f"{cell.name}.json"

    def rate(self, cell: Cell) -> Path:
        """The learning rate that was chosen for a cell's data set and size, see `rates`."""
        key = digest([self.reals.references[cell.data].fingerprint, cell.ipc])
        return self.out / RATES_FOLDER / f"{readable(f'{cell.data}-ipc{cell.ipc}')}-{key[:10]}.json"

    def whole(self, cell: Cell) -> Path:
        """The accuracy of a network on the whole real set of a cell's data, see `robust`."""
        key = digest(self.reals.references[cell.data].fingerprint)
        return self.out / WHOLE / f"{readable(cell.data)}-{key[:10]}.json"

    def job(self, cell: Cell) -> Job:
        """A cell's job, with the hyper-parameters that were settled for its group; settled once in a process."""
        key = (cell.data, cell.method, cell.ipc, cell.seed)
        if key not in self.jobs:
            self.keep(job_of(self.settings, self.reals, cell, self.out), cell)
        return self.jobs[key]

    def take(self, cell: Cell) -> Job:
        """A cell's job, which is not kept any longer: networks that its plan holds go with it."""
        job = self.job(cell)
        del self.jobs[cell.data, cell.method, cell.ipc, cell.seed]
        return job

    def keep(self, job: Job, cell: Cell) -> None:
        """Keep a job for its cell, with what was settled for the cell's group."""
        settled = self.settled[cell.group]
        now = hyper_of(job.method)
        other = {n: v for n, v in settled.hyper.items() if now.get(n) != v}
        for name, value in other.items():  # a budget settles numbers; words may be paths, which the caller alone gives
            if not isinstance(value, int | float):
                raise InputError(
                    f"The plan in {self.out} has {cell.method}.{name} {value!r} and this call {now.get(name)!r}; "
                    "use the same settings to go on, or another --out."
                )
        if other or job.notes != settled.notes:
            job = replace(job, method=with_overrides(job.method, other), notes=settled.notes)
        self.jobs[cell.data, cell.method, cell.ipc, cell.seed] = job


def job_of(settings: Settings, reals: RealSets, cell: Cell, out: Path) -> Job:
    """A cell's job as `distill` would settle and begin it; units that it prepares go to `out/prepare`."""
    return prepare_job(
        settings.methods[cell.method],
        reals.get(cell.data),
        ipc=cell.ipc,
        network=reals.network(cell.data, settings.network),
        recipe=settings.recipe,
        seed=cell.seed,
        runtime=Runtime.of(settings.device, settings.precision, settings.compile),
        folder=out,
        **settings.overrides.get(cell.method, {}),
        **changes_of(settings, cell),
    ).begun()


def changes_of(settings: Settings, cell: Cell) -> Mapping[str, Any]:
    """What a cell's run changes in its method; Random stays what all are compared with."""
    return {} if cell.method == BASELINE else settings.changes


def named(cell: Cell, job: Job, settings: Settings) -> Cell:
    """The cell with its name."""
    task = job.task
    key = digest(
        plain(
            {
                "method": cell.method,
                "hyper": hyper_of(job.method),
                "ipc": cell.ipc,
                "seed": cell.seed,
                "data": task.real.fingerprint,
                "network": task.network.describe(),
                "protocol": repr(settings.protocol),
                "networks": settings.networks,
                "device": task.device.type,
                "precision": settings.precision,
                "compile": settings.compile,
                **settings.scoring,
                **changes_of(settings, cell),
            }
        )
    )
    words = readable(f"{cell.data}-{cell.method}-ipc{cell.ipc}-seed{cell.seed}")
    return replace(cell, name=f"{words}-{key[:10]}")


def readable(text: str) -> str:
    """Text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.")[:120]


def prepared_units(job: Job) -> list[Path]:
    """The files that a job's preparation leaves."""
    with threads_for(job.task.network.macs):
        units = job.plan().prepare
        paths = [prepared_path(unit, job.task, units) for unit in units]
    return [path for path in paths if path is not None]


def perform(step: Callable[[Work, Cell, Path], None], work: Work, cell: Cell, target: Path) -> None:
    """One step of a comparison: `prepare`, `choose_rate` or `run_cell`."""
    step(work, cell, target)


def prepare(work: Work, cell: Cell, target: Path) -> None:
    """Do the preparation that writes `target`, once for all cells that share it."""
    job = work.job(cell)
    with threads_for(job.task.network.macs):
        plan = job.plan()
        unit = next(u for u in plan.prepare if prepared_path(u, job.task, plan.prepare) == target)
        prepare_units(plan, job.task, unit)


def run_cell(work: Work, cell: Cell, target: Path) -> None:
    """Distill (or go on from a checkpoint), score, and write the record."""
    job = work.take(cell)
    watch = Stopwatch()
    distilled = run_job(job, work.folder(cell), (), 15.0)
    made = watch.read()
    protocol, rate = protocol_of(work, cell, distilled)
    same = ("networks", "device", "precision", "compile", "optimizer")
    asked = {name: vars(work.settings)[name] for name in same} | {"network": job.task.network, "seed": cell.seed}
    result = evaluate(distilled, work.reals.get(cell.data), protocol=protocol, random=False, **asked)
    scoring = Stopwatch()
    apart = scored_apart(work, cell, distilled, result, protocol, asked)
    prepared = {path.name: round(_seconds_of(path), 3) for path in prepared_units(job)}
    for kind, told in distilled.record.changes:  # weights against a bias, of one seed, serve all methods
        if told.get("seconds"):
            prepared[f"{kind.label}, seed {cell.seed}"] = round(float(told["seconds"]), 3)
    spent = distilled.record.cost
    cost = {
        "steps": spent.steps,
        # of a run that was taken up again, this process saw the last part only
        "distillation_seconds": round(max(made["seconds"], spent.seconds), 3),
        "prepare_seconds": round(sum(prepared.values()), 3),
        "prepared": prepared,
        "evaluation_seconds": round(result.distilled.seconds, 3),
        **({"scores_seconds": scoring.read()["seconds"], **seconds_of_whole(work, cell)} if apart else {}),
        "compile": {"distillation": spent.compile, "evaluation": result.distilled.compiled},
        "cpu_seconds": watch.read()["cpu_seconds"],
        "peak_memory_bytes": peak_memory_bytes(job.task.device),
    }
    record = record_of(work, cell, distilled, result, cost) | rate | apart
    write_sealed(target, record | environment(job.task.device))


def record_of(
    work: Work, cell: Cell, distilled: DistilledSet, result: Evaluation, cost: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything about a cell; but for `cost` it is the same whenever and wherever it is run."""
    made, arm = distilled.record, result.distilled.to_dict()
    return {
        "format": FORMAT,
        "version": 1,
        "method": cell.method,
        "family": made.family,
        "data": cell.data,
        "ipc": cell.ipc,
        "seed": cell.seed,
        "protocol": work.settings.protocol.name,
        **({"optimizer": result.optimizer} if work.settings.optimizer != "auto" else {}),
        "lr": arm["lr"][0],
        "precision": work.settings.precision,
        "accuracy": arm["mean"],
        "accuracies": arm["accuracies"][0],
        "per_class": arm["per_class"],
        "hyper": made.hyper,
        "recipe": made.recipe.plain(),
        "notes": made.notes,
        "network": result.network,
        "real": result.data,
        "skipped_steps": made.cost.skipped_steps,
        "bytes": bytes_of_parts(distilled),
        "command": work.command,
        "cell": cell.name,
        **{kind.option: record for kind, record in made.changes},
        "cost": dict(cost),
    }


def _seconds_of(path: Path) -> float:
    return seconds_of(read_tensors(path)[1])
