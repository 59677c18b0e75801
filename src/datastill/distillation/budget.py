"""Minutes and memory of a run before it starts, measured on its first steps."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from datastill.core.cost import describe_seconds, peak_memory_bytes, plural
from datastill.core.errors import InputError
from datastill.core.loop import run_block
from datastill.core.plan import Plan, Task
from datastill.core.ranges import MANY, Count, Seed, checked
from datastill.core.registry import NOMINAL_MACS_PER_SECOND, Method, nominal_seconds, with_overrides
from datastill.core.runtime import Runtime
from datastill.core.threads import threads_for
from datastill.core.update import load_optimizers
from datastill.distillation.job import CONFIG, Job, RunRecord, compiled_for, prepare_job
from datastill.distillation.preparation import Prepared, in_order, ready_units, run_unit
from datastill.distillation.remarks import CHANGED, changes
from datastill.store.files import read_sealed

#: What a budget settles where nothing is prepared.
_SETTLED = frozenset({"steps", "real_batch"})


@runtime_checkable
class Rehearsed(Protocol):
    """A method whose preparation may be dearer than its steps (experts), so that a budget pays for both."""

    def rehearse(self, task: Task) -> AbstractContextManager[tuple[Method, float]]:
        """A method of the same steps whose preparation costs nothing, and the seconds that this one's would take."""
        ...

    def nominal_preparation(self, task: Task) -> float:
        """Seconds of the preparation at the nominal speed."""
        ...

    def at_pace(self, task: Task, seconds: float, preparation: float, step: float) -> Self:
        """This method scaled to about `seconds`, where each nominal second of the two takes so many."""
        ...

    @property
    def settled_by_budget(self) -> Collection[str]:
        """The values that `at_pace` may change."""
        ...


@runtime_checkable
class Grows(Protocol):
    """A method of which more than its full setting can be had, where there is time for it."""

    def with_more_preparation(
        self, task: Task, seconds: float, preparation: float, step: float, given: Collection[str]
    ) -> Self:
        """This method with more preparation within a time, as for `Rehearsed.at_pace`; none of `given` changes."""
        ...


@dataclass(frozen=True)
class Estimate:
    """What a run would take, measured on its first steps."""

    steps: int
    seconds_per_step: float
    prepare_seconds: float
    peak_memory_bytes: int
    paper_steps: int
    paper_seconds: float
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Preparation and all steps."""
        return self.prepare_seconds + self.steps * self.seconds_per_step

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "seconds": self.seconds}


@checked
def estimate(
    method: str | Method | type[Method],
    real: Any,
    *,
    ipc: Count,
    network: Any = None,
    recipe: str = "auto",
    seed: Seed = 0,
    device: str = "auto",
    compile: str = "auto",
    **options: Any,
) -> Estimate:
    """Minutes and memory of a run, from a few of its steps; nothing is written.

    The preparation (a feature network of a coreset, networks that resist a bias) is taken from its count of
    multiply-accumulates.

    Args:
        **options: hyper-parameters and overrides, as for `distill`; all else is as there.
    """
    settings: dict[str, Any] = {
        "ipc": ipc,
        "network": network,
        "seed": seed,
        "runtime": Runtime.of(device, compile=compile),
        **options,
    }
    job = prepare_job(method, real, recipe=recipe, **settings)
    return estimate_job(job, paper_of(job))


def paper_of(job: Job) -> Job:
    """The same run at the full setting, whatever numbers were given in its place; words, such as folders, stay."""
    words = {name: value for name, value in job.given.items() if not isinstance(value, bool | int | float)}
    task = job.task
    return prepare_job(
        type(job.method), task.real, ipc=task.ipc, network=task.network, recipe="paper", seed=task.seed,
        runtime=task.runtime, folder=task.folder, overrides=job.overrides, **words,
    )  # fmt: skip


def estimate_job(job: Job, paper: Job) -> Estimate:
    """The estimate of a settled job beside the full setting."""
    steps, paper_steps = job.method.steps, paper.method.steps
    per_step, preparing = measure(job)
    same_cost = job.method == replace(paper.method, **({"steps": steps} if steps else {}))
    ratio = 1.0
    if not same_cost and steps:
        ratio = _nominal_step(paper) / _nominal_step(job)
    nominal, paper_nominal = _nominal_preparation(job), _nominal_preparation(paper)
    paper_preparing = paper_nominal * (preparing / nominal if preparing and nominal else 1.0)
    return Estimate(
        steps=steps,
        seconds_per_step=per_step,
        prepare_seconds=preparing,
        peak_memory_bytes=peak_memory_bytes(job.task.device),
        paper_steps=paper_steps,
        paper_seconds=paper_preparing + paper_steps * per_step * ratio,
        notes=job.remarks,
    )


def measure(job: Job, seconds: float = 2.0) -> tuple[float, float]:
    """Seconds of one step and of the preparation.

    Steps are timed: the first is left out, then at most eight or about `seconds`. Preparation that a method rehearses
    is timed too; other preparation, and steps that need it, are taken from their count of multiply-accumulates.
    """
    if isinstance(job.method, Rehearsed):
        with job.method.rehearse(job.task) as (stand_in, preparing):
            return _timed(stand_in.build(job.task), job.task, seconds) if stand_in.steps else 0.0, preparing
    if not job.method.steps:
        return 0.0, _nominal_preparation(job)
    if job.own_plan.prepare:
        return _nominal_step(job), _nominal_preparation(job)
    return _timed(job.own_plan, job.task, seconds), _nominal_preparation(job)


def _timed(plan: Plan, task: Task, seconds: float) -> float:
    """Seconds of a step of all blocks, from those of the first block."""
    load_optimizers()  # else the first step of a process would take seconds more, if it trains a network
    block = next(iter(plan.partition.blocks(task.labels)))
    prepared: Prepared = {}
    for unit in in_order(plan.prepare):
        prepared[unit.name] = run_unit(unit, task, prepared)
    with threads_for((plan.network or task.network).macs):
        first = run_block(plan, task, block, prepared=prepared, stop_after=1).seconds
        if first < seconds:  # the first of a process pays for more than a step
            first = min(first, run_block(plan, task, block, prepared=prepared, stop_after=1).seconds)
        count = max(2, min(8, int(seconds / max(first, 1e-6))))  # a first step may hold more than a step (dwa)
        measured = run_block(plan, task, block, prepared=prepared, stop_after=1 + count).seconds
    later = (measured - first) / count if measured > first else measured / (1 + count)
    return max(1e-9, later) * len(task.labels) / len(block.index)


def _nominal_step(job: Job) -> float:
    return nominal_seconds(job.method.macs_per_step(job.task), job.task.device.type)


def _nominal_preparation(job: Job) -> float:
    if isinstance(job.method, Rehearsed):
        return job.method.nominal_preparation(job.task)
    task = job.task
    return sum(nominal_seconds(unit.macs(task), task.device.type) for unit in job.plan().prepare)


def seconds_of(budget: float | str | None) -> float | None:
    """Seconds from a number or from "60", "60s", "5m" or "2h"; None stays.

    Raises:
        InputError: it is no time.
    """
    if not isinstance(budget, str):
        return budget
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (budget[:-1], budget[-1]) if budget and budget[-1] in units else (budget, "s")
    try:
        seconds = float(number) * units[unit]
        if not math.isfinite(seconds):
            raise ValueError(budget)
        return seconds
    except ValueError:
        raise InputError(f"A budget is a time such as 60s, 5m or 2h, not {budget!r}.") from None


def within(job: Job, seconds: float, folder: Path | None, resume: bool) -> Job:
    """A budget in seconds becomes numbers once: measured at the start, read back on resume.

    They are a number of steps, and where a method prepares what is as dear as these (experts), also how much of that:
    where the budget does not pay for all of it and all steps, at most half goes to it. The steps have what is left.

    Raises:
        InputError: the budget is no time, or the caller gave the steps as well.
    """
    if "steps" in job.given:
        raise InputError("A budget settles the steps by itself; give either budget (--budget) or steps (--steps).")
    if not (0 < seconds < float("inf")):
        raise InputError(f"The budget must be a time above 0 seconds, not {seconds}.")
    if not job.method.steps and not isinstance(job.method, Rehearsed):
        return job
    if resume and folder is not None and (folder / CONFIG).is_file():
        return _as_stored(job, read_sealed(folder / CONFIG, RunRecord).get("hyper", {}))
    job = compiled_for(job, seconds * NOMINAL_MACS_PER_SECOND["cpu"])
    if isinstance(job.method, Rehearsed):
        return _prepared_within(job, seconds)
    per_step, preparing = measure(job)
    steps = min(MANY, max(1, int(max(seconds - preparing, seconds / 2) / per_step)))
    told = f"a budget of {plural(seconds, 'second')} became {plural(steps, 'step')}"
    return _settled(job, with_overrides(job.method, {"steps": steps}), told)


def _prepared_within(job: Job, seconds: float) -> Job:
    """Preparation and steps within a budget; what measuring takes is a part of it.

    The second measurement is at the settings that the first one led to: small batches have another pace than large.
    """
    started = time.perf_counter()
    before = job.unscaled or job.method

    def left() -> float:
        return max(seconds - (time.perf_counter() - started), seconds / 2)

    def scaled(preparation: float, step: float) -> Job:
        assert isinstance(before, Rehearsed)
        found: Method = before.at_pace(job.task, left(), preparation, step)
        if found == before and isinstance(before, Grows):
            found = before.with_more_preparation(job.task, left(), preparation, step, job.given)
        return replace(job, method=with_overrides(found, dict(job.given)))

    preparation = step = 1.0
    for _ in range(2):
        now = scaled(preparation, step)
        per_step, preparing = measure(now, 1.0)
        nominal = _nominal_preparation(now)
        preparation, step = preparing / nominal if nominal else 1.0, per_step / _nominal_step(now)
    now = scaled(preparation, step)
    preparing = preparation * _nominal_preparation(now)
    units = in_order(now.plan().prepare)
    made_before = bool(units) and len(ready_units(now.plan(), now.task)) == len(units)
    if made_before:
        preparing = 0.0
    lasting = "less than a second" if preparing < 0.5 else f"about {describe_seconds(preparing)}"
    settled, told = now.method, f"a budget of {plural(seconds, 'second')} became"
    if settled.steps:
        steps = min(MANY, max(1, int((left() - preparing) / (step * _nominal_step(now)))))
        settled, told = with_overrides(settled, {"steps": steps}), f"{told} {plural(steps, 'step')}"
        told += f" after {lasting} of preparation" if preparing else ""
        told += ", with what was prepared before" if made_before else ""
    else:
        told = f"{told} {lasting} of preparation"
    if preparing > seconds:
        told += ", which alone is longer than the budget"
    return _settled(job, settled, told)


def _settled(job: Job, method: Method, told: str) -> Job:
    """The job with what a time was settled to, and notes that say so in the place of what `auto` changed."""
    notes = [note for note in job.notes if job.unscaled is None or not note.startswith(CHANGED)]
    return replace(job, method=method, notes=(*notes, *changes(job.unscaled or job.method, method), told))


def _as_stored(job: Job, stored: dict[str, Any]) -> Job:
    """The job with what its budget was settled to when the run began."""
    names = set(job.method.settled_by_budget) if isinstance(job.method, Rehearsed) else _SETTLED
    kept = {f.name: stored[f.name] for f in fields(job.method) if f.name in names and f.name in stored}
    method = with_overrides(job.method, kept)
    return _settled(job, method, f"a budget became {plural(method.steps, 'step')} when this run began")
