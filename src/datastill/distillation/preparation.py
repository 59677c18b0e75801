"""What a plan prepares: units that run once, each a file named by the hash of what it depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from datastill.core.cost import Stopwatch
from datastill.core.errors import InputError
from datastill.core.plan import Decoder, Needs, Plan, Reduces, Task, Unit
from datastill.core.ranges import MANY
from datastill.core.usercode import blaming
from datastill.store.checkpoint import plain
from datastill.store.files import digest, read_tensors, seconds_of, write_tensors
from datastill.store.rendering import decoder_of

Prepared = dict[str, dict[str, Tensor]]


@runtime_checkable
class Resumes(Protocol):
    """A unit that goes on where a process before was stopped, and knows what that took."""

    def spent(self, task: Task, prepared: Mapping[str, Tensor]) -> float:
        """Seconds of all processes that worked at it."""
        ...


def prepare(plan: Plan, task: Task, only: Unit | None = None) -> tuple[Prepared, float]:
    """Run the units that are missing, of all or of one with those that it needs; each is one file.

    Returns their tensors by name, and the seconds that they took, whenever that was.
    """
    prepared: Prepared = {}
    total = 0.0
    for unit in in_order(plan.prepare, only):
        name = unit.name
        path = prepared_path(unit, task, plan.prepare)
        if path is not None and path.is_file():
            prepared[name], meta = read_tensors(path, resuming=True)
            total += seconds_of(meta)
            continue
        watch = Stopwatch()
        prepared[name] = run_unit(unit, task, prepared)
        seconds = watch.read()["seconds"]
        if isinstance(unit, Resumes):
            seconds = max(seconds, unit.spent(task, prepared[name]))
        total += seconds
        if path is not None:
            write_tensors(path, prepared[name], {"seconds": str(seconds)})
    return prepared, total


def ready_units(plan: Plan, task: Task) -> list[str]:
    """The names of those that are in the task's folder already."""
    paths = {unit.name: prepared_path(unit, task, plan.prepare) for unit in in_order(plan.prepare)}
    return [name for name, path in paths.items() if path is not None and path.is_file()]


def run_unit(unit: Unit, task: Task, prepared: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What one unit prepares, given what the units before it did."""
    needed = {name: prepared[name] for name in _needs(unit)}
    with blaming(lambda: f"while {unit.name} was prepared", lambda: task.network(0)):
        return dict(unit.run(replace(task, prepared=needed) if needed else task))


def in_order(units: Sequence[Unit], only: Unit | None = None) -> list[Unit]:
    """The units, each after those that it needs; with `only`, that one and those.

    Raises:
        InputError: two units have one name, or one needs a unit that is not there or needs itself.
    """
    known = {unit.name: unit for unit in units}
    if len(known) < len(units):
        names = [unit.name for unit in units]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"Two units that are prepared are called {twice!r}; give one of them another name.")
    ordered: dict[str, Unit] = {}

    def place(unit: Unit, above: tuple[str, ...]) -> None:
        if unit.name in above:
            raise InputError(f"The unit {unit.name!r} would be prepared after itself: {' → '.join(above)}.")
        for name in _needs(unit):
            if name not in known:
                raise InputError(f"The unit {unit.name!r} needs {name!r}, and the plan prepares {sorted(known)}.")
            place(known[name], (*above, unit.name))
        ordered.setdefault(unit.name, unit)

    for unit in units if only is None else [only]:
        place(unit, ())
    return list(ordered.values())


def prepared_path(unit: Unit, task: Task, units: Sequence[Unit] = ()) -> Path | None:
    """The file of a prepared unit in the task's folder, which several runs may share; None keeps it in memory.

    Args:
        unit: which.
        task: whose folder.
        units: those of its plan, on some of which it may depend.
    """
    if task.folder is None:
        return None
    key = _key(unit, task, {other.name: other for other in units})
    return task.folder / "prepare" / f"{unit.name}-{digest(key)}.safetensors"


def check_plan(plan: Plan, method: str, shape: Sequence[int] = ()) -> Plan:
    """The plan, if it can be run to its end on images of this shape.

    Raises:
        InputError: its steps are none, its units cannot be prepared, its decoder not be read back, or its objective
            does not go through its `reduce`.
    """
    if not 0 <= plan.steps <= MANY:
        raise InputError(f"{method} would take {plan.steps} steps; give a number of them from 0 to {MANY:,}.")
    in_order(plan.prepare)
    _check_decoder(plan.decoder, method, shape)
    objective = plan.objective
    reduced = isinstance(objective, Reduces) and objective.reduces and not _looks_past(plan)
    if plan.reduce is not None and not reduced:
        raise InputError(
            f"{method} does not take all that it sees of real images through one reduction, so none can replace it; "
            "of the methods here dm, dm-fast and idm do, on networks without batch norm."
        )
    return plan


def _looks_past(plan: Plan) -> bool:
    """Whether real images give more than what is reduced: statistics of batch norm, or their contrast."""
    from datastill.decoders.pixels import Pixels
    from datastill.surrogates.fresh import Fresh

    network, surrogates, decoder = plan.network, plan.surrogates, plan.decoder
    frozen = isinstance(surrogates, Fresh) and surrogates.frozen and network is not None and network.couples_samples
    return frozen or (isinstance(decoder, Pixels) and decoder.contrast is not None)


def _check_decoder(decoder: Decoder, method: str, shape: Sequence[int]) -> None:
    from datastill.decoders.multi_formation import MultiFormation

    if isinstance(decoder, MultiFormation) and shape:
        decoder.encode(torch.zeros(1, *shape))  # refuses sides that it cannot cut
    record = plain(decoder.describe())
    try:
        same = plain(decoder_of(record).describe()) == record
    except InputError:
        same = False
    if not same:
        name = record.get("decoder")
        raise InputError(
            f"Sets of {method} could not be read back: its decoder describes itself as {record}, and DECODER in "
            f"datastill/decoders/{name}.py must be the class that makes it again from these options."
        )


def _needs(unit: Unit) -> Sequence[str]:
    return sorted(unit.needs) if isinstance(unit, Needs) else ()


def _key(unit: Unit, task: Task, known: Mapping[str, Unit]) -> dict[str, Any]:
    """What the result depends on, through the units that are needed too."""
    needs = {name: _key(known[name], task, known) for name in _needs(unit)}
    return {"unit": unit.key(task), "needs": needs} if needs else unit.key(task)
