"""Minutes and memory of a run before it starts, measured on its first steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datastill.core.cost import peak_memory_bytes
from datastill.core.errors import InputError
from datastill.core.files import read_json
from datastill.core.loop import synthesise
from datastill.core.plan import Task
from datastill.core.registry import NOMINAL_MACS_PER_SECOND, Method, nominal_seconds, with_overrides
from datastill.core.threads import threads_for
from datastill.jobs import CONFIG, Job, compiled_for, prepare_job, steps_of


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


def estimate(
    method: str | Method | type[Method],
    real: Any,
    *,
    ipc: int,
    network: Any = None,
    recipe: str = "auto",
    seed: int = 0,
    device: str = "auto",
    compile: str = "auto",
    **hyper: Any,
) -> Estimate:
    """Minutes and memory of a run, from a few of its steps; nothing is written.

    The preparation (a feature network of a coreset) is taken from its count of multiply-accumulates.
    """
    settings: dict[str, Any] = {
        "ipc": ipc,
        "network": network,
        "seed": seed,
        "device": device,
        "compile": compile,
        **hyper,
    }
    job = prepare_job(method, real, recipe=recipe, **settings)
    paper = prepare_job(method, job.task.real, recipe="paper", **settings)
    return estimate_job(job, paper)


def estimate_job(job: Job, paper: Job) -> Estimate:
    """The estimate of a settled job beside the paper's setting."""
    steps, paper_steps = steps_of(job.method), steps_of(paper.method)
    per_step = measure_step(job)
    same_cost = job.method == replace(paper.method, **({"steps": steps} if steps else {}))
    ratio = 1.0
    if not same_cost and steps:
        device = job.task.device.type
        ratio = nominal_seconds(paper.method.macs_per_step(paper.task), device) / nominal_seconds(
            job.method.macs_per_step(job.task), device
        )
    preparing = sum(_unit_seconds(unit, job.task) for unit in job.method.build(job.task).prepare)
    paper_preparing = sum(_unit_seconds(unit, paper.task) for unit in paper.method.build(paper.task).prepare)
    return Estimate(
        steps=steps,
        seconds_per_step=per_step,
        prepare_seconds=preparing,
        peak_memory_bytes=peak_memory_bytes(job.task.device),
        paper_steps=paper_steps,
        paper_seconds=paper_preparing + paper_steps * per_step * ratio,
        notes=job.notes,
    )


def measure_step(job: Job, seconds: float = 2.0) -> float:
    """Seconds of one step: the first is left out, then at most eight or about `seconds`."""
    if not steps_of(job.method):
        return 0.0
    plan = job.method.build(job.task)
    if plan.prepare:
        return nominal_seconds(job.method.macs_per_step(job.task), job.task.device.type)
    with threads_for((plan.network or job.task.network).macs):
        warm = synthesise(plan, job.task, stop_after=1)
        count = max(1, min(8, int(seconds / max(warm.seconds, 1e-6))))
        measured = synthesise(plan, job.task, stop_after=1 + count)
    return max(1e-9, (measured.seconds - warm.seconds) / count) if count > 1 else measured.seconds / (1 + count)


def _unit_seconds(unit: Any, task: Task) -> float:
    cost = getattr(unit, "macs", None)
    return nominal_seconds(cost(task), task.device.type) if cost is not None else 0.0


def within(job: Job, seconds: float, folder: Path | None, resume: bool) -> Job:
    """A budget in seconds becomes a number of steps once: measured at the start, read back on resume."""
    if not (0 < seconds < float("inf")):
        raise InputError(f"The budget must be a time above 0 seconds, not {seconds}.")
    if not steps_of(job.method):
        return job
    if resume and folder is not None and (folder / CONFIG).is_file():
        stored = read_json(folder / CONFIG).get("hyper", {})
        kept = {"steps": stored.get("steps"), "real_batch": stored.get("real_batch")}
        return replace(job, method=with_overrides(job.method, {n: v for n, v in kept.items() if v is not None}))
    job = compiled_for(job, seconds * NOMINAL_MACS_PER_SECOND["cpu"])
    steps = max(1, int(seconds / measure_step(job)))
    return replace(
        job,
        method=with_overrides(job.method, {"steps": steps}),
        notes=(*job.notes, f"a budget of {seconds:g} seconds became {steps} steps"),
    )
