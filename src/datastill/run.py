"""`distill` and `estimate`: from a method's name and real data to an artifact in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.allocator import keep_freed_memory
from datastill.core.artifact import MANIFEST, DistilledSet
from datastill.core.checkpoint import Checkpointer, plain, refuse_other
from datastill.core.cost import environment, peak_memory_bytes, pick_device
from datastill.core.errors import Diverged, InputError, Interrupted
from datastill.core.files import digest, make_folder, read_json, read_tensors, write_json, write_tensors
from datastill.core.loop import Outcome, synthesise
from datastill.core.plan import Callback, Plan, Task
from datastill.core.recipes import Recipe, find_recipe, get_recipe
from datastill.core.registry import Method, get_method, nominal_seconds, with_overrides
from datastill.core.rng import Rng
from datastill.data import check_ipc, load_real
from datastill.models import resolve_network

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: Seconds at the nominal speed that `recipe="auto"` scales a method to.
AUTO_SECONDS = 120.0
CONFIG = "config.json"


@dataclass(frozen=True)
class Job:
    """A method with all its hyper-parameters settled, and what it is to do."""

    method: Method
    method_name: str
    family: str
    task: Task
    recipe: str
    published: Recipe | None
    notes: tuple[str, ...] = ()

    def config(self, plan: Plan) -> dict[str, Any]:
        """Everything that the result depends on, JSON-able; a resumed run must agree with it."""
        init = plan.init.describe()
        return plain(
            {
                "method": self.method_name,
                "hyper": _hyper(self.method),
                "ipc": self.task.ipc,
                "seed": self.task.seed,
                "network": self.task.network.describe(),
                "data": {
                    "name": self.task.real.name,
                    "fingerprint": self.task.real.fingerprint,
                    "weights": None if self.task.real.weights is None else digest(self.task.real.weights),
                },
                "space": self.task.real.space.id,
                "init": init,
                "decoder": plan.decoder.describe(),
                "partition": plan.partition.describe(),
                "device": self.task.device.type,
                "threads": torch.get_num_threads(),
                "chunk": self.task.chunk,
            }
        )


def distill(
    method: str | Method | type[Method],
    real: Any,
    *,
    ipc: int,
    network: Any = None,
    recipe: str = "auto",
    budget: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    checkpoint_seconds: float = 15.0,
    **hyper: Any,
) -> DistilledSet:
    """Learn a small synthetic training set.

    Args:
        method: a name (`datastill.methods()` lists them), a method's class, or one with its values.
        real: the real set: anything that `load_real` takes, or what it returned.
        ipc: images per class.
        network: the surrogates' architecture: a name, a class or function that builds one, or a module;
            None takes a ConvNet that fits the image size.
        recipe: "auto" scales the paper's setting to about two minutes of a laptop, "paper" takes it whole,
            a name such as "dm/cifar10-ipc10" takes that one.
        budget: seconds to scale to instead, by a measurement at the start; recorded as a number of steps.
        seed: of every random draw.
        out: a folder for the run: artifact, checkpoints, log; None keeps the result in memory only.
        resume: go on from the checkpoints in `out`.
        device: "auto", "cpu", "cuda", "mps".
        callbacks: hooks into the loop.
        checkpoint_seconds: time between checkpoints; never changes a result.
        **hyper: hyper-parameters of the method, over the recipe's.

    Returns:
        The distilled set; also saved in `out`.

    Raises:
        InputError: something given cannot be used.
        Interrupted: Ctrl-C; what was done is saved in `out`.
        Diverged: too many non-finite steps.
    """
    folder = Path(out) if out is not None else None
    if folder is not None:
        _check_out(folder, resume)
    job = prepare_job(
        method, real, ipc=ipc, network=network, recipe=recipe, budget=None, seed=seed, device=device, folder=folder,
        **hyper,
    )  # fmt: skip
    if budget is not None:
        job = _within(job, budget, folder, resume)
    return run_job(job, folder, callbacks, checkpoint_seconds)


def prepare_job(
    method: str | Method | type[Method],
    real: Any,
    *,
    ipc: int,
    network: Any = None,
    recipe: str = "auto",
    budget: float | None = None,
    seed: int = 0,
    device: str = "auto",
    folder: Path | None = None,
    **hyper: Any,
) -> Job:
    """Settle the data, the network and every hyper-parameter, without doing anything yet."""
    from datastill.data.real import RealSet

    keep_freed_memory()
    start, name, family = _instance(method)
    data: RealSet = real if isinstance(real, RealSet) else load_real(real)
    check_ipc(data, ipc)
    factory = resolve_network(network, channels=data.shape[0], classes=data.classes, size=data.shape[1:])
    task = Task(data, ipc, factory, seed, pick_device(device), folder)
    settled, found, notes = _settle(start, name, data.name, task, recipe, hyper)
    return Job(settled, name, family, task, recipe, found, notes)


def run_job(job: Job, folder: Path | None, callbacks: Sequence[Callback], checkpoint_seconds: float) -> DistilledSet:
    """Prepare, synthesise, and write the artifact."""
    plan = job.method.build(job.task)
    config = job.config(plan)
    checkpointer = None
    if folder is not None:
        make_folder(folder)
        stored = folder / CONFIG
        if stored.is_file():
            refuse_other(config, read_json(stored), folder)
        write_json(stored, config)
        checkpointer = Checkpointer(folder / "checkpoints", config, checkpoint_seconds)
    prepared = _prepare(plan, job.task)
    try:
        outcome = synthesise(plan, job.task, callbacks=callbacks, checkpointer=checkpointer, prepared=prepared)
    except Interrupted as stop:
        hint = f" What was done is in {folder}; add --resume to go on." if folder is not None else " Nothing was saved."
        raise Interrupted(f"{stop}{hint}") from stop
    except Diverged as stop:
        hint = f" ({folder})" if folder is not None else ""
        raise Diverged(f"{stop}{hint}") from stop
    distilled = _artifact(job, plan, outcome)
    if folder is not None:
        distilled.save(folder)
        write_tensors(folder / "losses.safetensors", {"losses": outcome.losses})
    return distilled


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
    **hyper: Any,
) -> Estimate:
    """Minutes and memory of a run, from a few of its steps; nothing is written.

    The preparation (a feature network of a coreset) is taken from its count of multiply-accumulates.
    """
    job = prepare_job(method, real, ipc=ipc, network=network, recipe=recipe, seed=seed, device=device, **hyper)
    paper = prepare_job(
        method, job.task.real, ipc=ipc, network=network, recipe="paper", seed=seed, device=device, **hyper
    )
    return estimate_job(job, paper)


def estimate_job(job: Job, paper: Job) -> Estimate:
    """The estimate of a settled job beside the paper's setting."""
    steps, paper_steps = _steps(job.method), _steps(paper.method)
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
    if not _steps(job.method):
        return 0.0
    plan = job.method.build(job.task)
    if plan.prepare:
        return nominal_seconds(job.method.macs_per_step(job.task), job.task.device.type)
    warm = synthesise(plan, job.task, stop_after=1)
    count = max(1, min(8, int(seconds / max(warm.seconds, 1e-6))))
    measured = synthesise(plan, job.task, stop_after=1 + count)
    return max(1e-9, (measured.seconds - warm.seconds) / count) if count > 1 else measured.seconds / (1 + count)


def _unit_seconds(unit: Any, task: Task) -> float:
    cost = getattr(unit, "macs", None)
    return nominal_seconds(cost(task), task.device.type) if cost is not None else 0.0


def _instance(method: str | Method | type[Method]) -> tuple[Method, str, str]:
    if isinstance(method, str):
        info = get_method(method)
        return info.cls(), info.name, info.family
    made = method if isinstance(method, Method) else method()
    if not isinstance(made, Method):
        raise InputError(f"{method!r} is not a method; give a name, or a class made with @method(...).")
    name = getattr(made, "registered_name", type(made).__name__.lower())
    return made, name, getattr(made, "family", "")


def _settle(
    start: Method, name: str, data: str, task: Task, recipe: str, hyper: dict[str, Any]
) -> tuple[Method, Recipe | None, tuple[str, ...]]:
    """The method's values: defaults, then the recipe's, then the caller's; scaled last where asked."""
    given = type(start)() != start
    found = find_recipe(name, data, task.ipc)
    if recipe not in ("auto", "paper"):
        found = get_recipe(recipe)
        if found.method != name:
            raise InputError(f"The recipe {recipe!r} is for {found.method}, not for {name}.")
    settled = start
    if not given:
        if recipe != "auto":
            settled = with_overrides(settled, start.paper_values)
        if found is not None and (recipe != "auto" or _steps(start)):
            settled = with_overrides(settled, dict(found.hyper))
    settled = with_overrides(settled, hyper)
    notes: list[str] = []
    if recipe == "auto" and not given and "steps" not in hyper and _steps(settled):
        scaled = with_overrides(settled.scaled(task, AUTO_SECONDS), hyper)
        notes += _changes(settled, scaled)
        settled = scaled
    _check_values(settled)
    return settled, found, tuple(notes)


def _changes(before: Method, after: Method) -> list[str]:
    old, new = asdict(before), asdict(after)
    changed = [f"{n} {old[n]:,} → {new[n]:,}" for n in old if old[n] != new[n]]
    return [f"scaled from the paper's setting: {', '.join(changed)}"] if changed else []


def _check_values(method: Method) -> None:
    for field_name, value in asdict(method).items():
        if field_name in ("steps", "real_batch", "feature_passes") and (not isinstance(value, int) or value < 1):
            raise InputError(f"{field_name} must be a whole number of at least 1, not {value!r}.")
        if field_name.endswith("_lr") and not value > 0:
            raise InputError(f"{field_name} must be above 0, not {value!r}.")


def _steps(method: Method) -> int:
    return int(getattr(method, "steps", 0))


def _hyper(method: Method) -> dict[str, Any]:
    from dataclasses import fields

    record: dict[str, Any] = {}
    for f in fields(method):
        value = getattr(method, f.name)
        record[f.name] = f"tensor {digest(value)}" if isinstance(value, Tensor) else value
    return json.loads(json.dumps(record, default=str))


def _check_out(folder: Path, resume: bool) -> None:
    if (folder / MANIFEST).is_file() and not resume:
        raise InputError(f"{folder} already holds a finished run; choose another --out or remove it.")
    if (folder / CONFIG).is_file() and not resume:
        raise InputError(f"{folder} holds an unfinished run; add --resume to go on, or choose another --out.")
    make_folder(folder)


def _within(job: Job, seconds: float, folder: Path | None, resume: bool) -> Job:
    """A budget in seconds becomes a number of steps once: measured at the start, read back on resume."""
    if seconds <= 0:
        raise InputError(f"The budget must be above 0 seconds, not {seconds}.")
    if not _steps(job.method):
        return job
    if resume and folder is not None and (folder / CONFIG).is_file():
        stored = read_json(folder / CONFIG).get("hyper", {})
        kept = {"steps": stored["steps"], "real_batch": stored.get("real_batch")}
        return replace(job, method=with_overrides(job.method, {n: v for n, v in kept.items() if v is not None}))
    steps = max(1, int(seconds / measure_step(job)))
    return replace(
        job,
        method=with_overrides(job.method, {"steps": steps}),
        notes=(*job.notes, f"a budget of {seconds:g} seconds became {steps} steps"),
    )


def _prepare(plan: Plan, task: Task) -> dict[str, dict[str, Tensor]]:
    """Run the units that are missing; each is one file, named by the hash of what it depends on."""
    prepared: dict[str, dict[str, Tensor]] = {}
    for unit in plan.prepare:
        name = str(getattr(unit, "name", "unit"))
        path = None if task.folder is None else task.folder / "prepare" / f"{name}-{digest(unit.key(task))}.safetensors"
        if path is not None and path.is_file():
            prepared[name] = read_tensors(path)[0]
            continue
        prepared[name] = unit.run(task)
        if path is not None:
            write_tensors(path, prepared[name])
    return prepared


def _artifact(job: Job, plan: Plan, outcome: Outcome) -> DistilledSet:
    task, real = job.task, job.task.real
    protocol = _student_protocol(job, plan)
    losses = outcome.losses
    manifest = {
        "method": job.method_name,
        "family": job.family,
        "hyper": _hyper(job.method),
        "recipe": {"asked": job.recipe, "published": job.published.name if job.published else None},
        "ipc": task.ipc,
        "seed": task.seed,
        "classes": {"names": list(real.class_names), "label_ids": list(real.label_ids)},
        "labels": "hard" if outcome.y.ndim == 1 else "soft",
        "shape": list(real.shape),
        "space": real.space.to_dict(),
        "decoder": plan.decoder.describe(),
        "data": real.describe(),
        "network": {**task.network.describe(), "spec": _network_spec(task)},
        "student": {"protocol": protocol},
        "cost": {
            "steps": int(losses.shape[1]) if losses.ndim == 2 else 0,
            "blocks": int(losses.shape[0]),
            "seconds": round(outcome.seconds, 3),
            "skipped_steps": outcome.skipped,
            "peak_memory_bytes": peak_memory_bytes(task.device),
            **environment(task.device),
        },
        "notes": list(job.notes),
    }
    return DistilledSet(outcome.codes, outcome.y, real.space, plain(manifest), outcome.extra)


def _network_spec(task: Task) -> str | None:
    """The network as `resolve_network` reads it, or None for an object that only the caller has."""
    spec = str(task.network)
    try:
        resolve_network(spec, channels=task.real.shape[0], classes=task.classes, size=task.real.shape[1:])
    except InputError:
        return None
    return spec


def _student_protocol(job: Job, plan: Plan) -> str:
    """What "auto" evaluates with: the recipe's own protocol for a paper run, else a quick one of its kind."""
    if job.recipe != "auto" and job.published is not None and job.published.protocol:
        return job.published.protocol
    return "dc-v1" if plan.augment is None else "dsa-quick-v1"


__all__ = ["Estimate", "Job", "Rng", "distill", "estimate", "prepare_job", "run_job"]
