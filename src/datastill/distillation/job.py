"""From what a caller asks for to a settled job: method, hyper-parameters, recipe, data, network, device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field

from datastill.core import compilation
from datastill.core.allocator import keep_freed_memory
from datastill.core.errors import InputError, UserCodeFailed
from datastill.core.overrides import Override, taken_from
from datastill.core.plan import Plan, Task, chunk_for
from datastill.core.ranges import Count, Seed, check_fields, checked
from datastill.core.recipes import Recipe, find_recipe, get_recipe
from datastill.core.registry import Chooses, Method, get_method, methods, with_overrides
from datastill.core.runtime import Runtime
from datastill.core.usercode import blaming, called, is_theirs
from datastill.data import check_ipc, load_real
from datastill.distillation.code import changed_code, code_since
from datastill.distillation.preparation import check_plan
from datastill.distillation.remarks import changes, filled_in, hyper_of, other_space, void_values
from datastill.models import resolve_network
from datastill.models.code import States, code_of
from datastill.store.checkpoint import plain
from datastill.store.files import digest
from datastill.store.schema import Code, Record

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: Seconds at the nominal speed that `recipe="auto"` scales a method to.
AUTO_SECONDS = 120.0
CONFIG = "config.json"


class RunRecord(Record):
    """What `config.json` of a run says, as far as it is used; all of it is compared."""

    hyper: dict[str, Any]
    compile: bool = False
    code: Code = Field(default_factory=dict)
    threads: Annotated[int, Field(ge=1, le=4_096)] | None = None


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
    overrides: tuple[Override, ...] = ()  #: what the run changes in the method's plan
    unscaled: Method | None = None  #: the method before `auto` scaled it; None where it did not
    given: Mapping[str, Any] = field(default_factory=dict)  #: hyper-parameters that the caller named
    code: States = field(default_factory=dict)  #: the user's files that the run calls

    @cached_property
    def own_plan(self) -> Plan:
        """The method's plan as it is without overrides, built once."""
        with blaming(lambda: "before the run began"):
            plan = self.method.build(self.task)
        if not isinstance(plan, Plan) and is_theirs(self.method):
            raise UserCodeFailed(f"build of {called(self.method)} must return a Plan, and returned {plan!r}.")
        return plan

    @cached_property
    def _plan(self) -> Plan:
        plan = self.own_plan
        for override in self.overrides:
            plan = override.apply(plan, self.method_name, self.task)
        return check_plan(plan, self.method_name, self.task.real.shape)

    def plan(self) -> Plan:
        """The method's plan with what the run changes in it; the same object at every call.

        Raises:
            InputError: the method has nothing of the kind that is to be changed, or its plan could not run to its end.
        """
        return self._plan

    def begun(self) -> Job:
        """The job on the real set as its overrides change that, and with what they learned on the way."""
        if not self.overrides:
            return self
        real, begun = self.task.real, []
        for override in self.overrides:
            real, changed = override.begin(real, self.task.seed, self.task.runtime)
            begun.append(changed)
        return replace(self, task=replace(self.task, real=real), overrides=tuple(begun))

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences for the notes of the run: those of settling it, and those of its overrides."""
        of_overrides = (note for override in self.overrides for note in override.notes(self.method))
        return (*self.notes, *of_overrides, *changed_code(self.code))

    def __getstate__(self) -> dict[str, Any]:
        """Without the plan: its parts need not be picklable, and another process builds its own."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def config(self, plan: Plan) -> dict[str, Any]:
        """Everything that the result depends on, JSON-able; a resumed run must agree with it."""
        init = plan.init.describe()
        return plain(
            {
                "method": self.method_name,
                "recipe": self.recipe,
                "hyper": hyper_of(self.method),
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
                "precision": self.task.precision,
                "compile": self.task.compile,
                "threads": torch.get_num_threads(),
                **({} if self.task.runtime.ranks.alone else {"ranks": self.task.runtime.ranks.count}),
                **{name: value for override in self.overrides for name, value in override.config().items()},
                "chunk": chunk_for((plan.network or self.task.network).macs, self.task.device),
                **({"code": self.code} if self.code else {}),
            }
        )


@checked
def prepare_job(
    method: str | Method | type[Method],
    real: Any,
    *,
    ipc: Count,
    network: Any = None,
    recipe: str = "auto",
    seed: Seed = 0,
    runtime: Runtime | None = None,
    folder: Path | None = None,
    overrides: tuple[Override, ...] = (),
    **options: Any,
) -> Job:
    """Settle the data, the network and every hyper-parameter, without doing anything yet.

    Args:
        runtime: where and how; None takes the device that there is.
        folder: where prepared units are kept.
        overrides: those that have begun; others may be among the options, by their names.
        **options: hyper-parameters, and overrides by name.
    """
    from datastill.data.real import RealSet

    asked, hyper = taken_from(options)
    keep_freed_memory()
    start, name, family = _instance(method)
    usual = with_overrides(start, hyper)  # refused before the data are read
    data: RealSet = real if isinstance(real, RealSet) else load_real(real)
    check_ipc(data, ipc)
    _refuse_kind(start, name, data)
    ipc, seed = int(ipc), int(seed)
    if network is None:
        network = usual.usual_network()
    factory = resolve_network(network, **data.network_shape)
    task = Task(data, ipc, factory, seed, runtime or Runtime.of(), folder)
    chosen: tuple[str, ...] = ()
    if isinstance(start, Chooses):
        wanted, hyper, why = start.choose(task)
        start, name, family = _instance(wanted)
        chosen = (f"{name} was chosen: {why}",)
    settled, unscaled, found, notes = _settle(start, name, data.name, task, recipe, hyper)
    changed = (*overrides, *asked)
    notes = (*chosen, *notes, *settled.remarks(task))
    job = Job(settled, name, family, task, recipe, found, notes, changed, unscaled, hyper, code_of(start, factory))
    counted = task.runtime.compile == "auto" and task.device.type == "cpu"
    return compiled_for(job, planned_macs(job) if counted else 0.0)


def _refuse_kind(method: Method, name: str, data: RealSet) -> None:
    """A method of classes has no use for pairs, nor one of pairs for classes."""
    if isinstance(method, Chooses) or data.kind in method.takes:
        return
    fitting = ", ".join(known for known, info in methods().items() if data.kind in info.cls.takes)
    raise InputError(
        f"{name} distills sets of {' or '.join(method.takes)}, and {data.name} is one of {data.kind}; take {fitting}."
    )


def planned_macs(job: Job) -> float:
    """Multiply-accumulates of all steps and of what is prepared, as the method counts them."""
    method, task = job.method, job.task
    preparing = sum(unit.macs(task) for unit in job.own_plan.prepare)
    return preparing + (method.steps * method.macs_per_step(task) if method.steps else 0.0)


def compiled_for(job: Job, macs: float) -> Job:
    """The job, with compiled networks if so much work is worth it; not where layers couple samples."""
    may = job.method.compiles and not job.task.network.couples_samples
    return _on(job, job.task.runtime.for_work(macs, may))


def as_begun(job: Job, config: dict[str, Any]) -> Job:
    """The job, compiled or not as the run was that it goes on with, and aware of what the user changed since.

    Raises:
        InputError: the run was compiled, and nothing can be compiled here.
    """
    compiled = bool(config.get("compile", False))
    if compiled:
        compilation.require()
    job = replace(job, code=code_since(config.get("code", {}), job.code, "the run began"))
    return _on(job, replace(job.task.runtime, compiled=compiled))


def _on(job: Job, runtime: Runtime) -> Job:
    return job if runtime == job.task.runtime else replace(job, task=replace(job.task, runtime=runtime))


def _instance(method: str | Method | type[Method]) -> tuple[Method, str, str]:
    if isinstance(method, str):
        info = get_method(method)
        return info.cls(), info.name, info.family
    made = method if isinstance(method, Method) else method()
    if not isinstance(made, Method):
        raise InputError(f"{method!r} is not a method; give a name, or a class made with @method(...).")
    return made, made.registered_name or type(made).__name__.lower(), made.registered_family


def _settle(
    start: Method, name: str, data: str, task: Task, recipe: str, hyper: dict[str, Any]
) -> tuple[Method, Method | None, Recipe | None, tuple[str, ...]]:
    """The method's values: defaults, then the recipe's, then the caller's; scaled last where asked.

    Beside them the values before scaling where that changed something, the recipe, and notes.
    """
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
        if found is not None and (recipe != "auto" or start.steps):
            settled = with_overrides(settled, dict(found.hyper))
    settled = with_overrides(settled, hyper)
    filled = settled.for_task(task)
    notes = filled_in(settled, filled, task.ipc, recipe) if found is None else other_space(found, task)
    scaled = filled
    if recipe == "auto" and not given:
        if "steps" in hyper:
            scaled = filled.with_cheap_preparation(task, AUTO_SECONDS / 2, hyper)
        else:
            scaled = with_overrides(filled.scaled(task, AUTO_SECONDS), hyper)
        notes += changes(filled, scaled)
    check_fields(scaled)
    notes += void_values(scaled, hyper)
    return scaled, filled if scaled != filled else None, found, tuple(notes)
