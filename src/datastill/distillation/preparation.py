"""What a plan prepares: units that run once, each a file named by the hash of what it depends on."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from datastill.core.cost import Stopwatch
from datastill.core.plan import Plan, Task, Unit
from datastill.store.files import digest, read_tensors, seconds_of, write_tensors


def prepare(plan: Plan, task: Task) -> tuple[dict[str, dict[str, Tensor]], float]:
    """Run the units that are missing; each is one file, named by the hash of what it depends on.

    Returns their tensors by name, and the seconds that they took, whenever that was.
    """
    prepared: dict[str, dict[str, Tensor]] = {}
    total = 0.0
    for unit in plan.prepare:
        name = unit.name
        path = prepared_path(unit, task)
        if path is not None and path.is_file():
            prepared[name], meta = read_tensors(path, resuming=True)
            total += seconds_of(meta)
            continue
        watch = Stopwatch()
        prepared[name] = unit.run(task)
        seconds = watch.read()["seconds"]
        total += seconds
        if path is not None:
            write_tensors(path, prepared[name], {"seconds": str(seconds)})
    return prepared, total


def prepared_path(unit: Unit, task: Task) -> Path | None:
    """The file of a prepared unit in the task's folder, which several runs may share; None keeps it in memory."""
    if task.folder is None:
        return None
    return task.folder / "prepare" / f"{unit.name}-{digest(unit.key(task))}.safetensors"
