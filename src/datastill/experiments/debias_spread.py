"""Cells of a de-biasing study over several processes: each writes its record, as one process does."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.core.plan import silent
from datastill.core.registry import get_method
from datastill.core.runtime import Runtime
from datastill.data.shared import shared
from datastill.distillation.job import prepare_job
from datastill.launch import Done, Unit, run_units
from datastill.store.files import write_sealed

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.experiments.debias_cell import Cell
    from datastill.experiments.debias_study import DebiasStudy


@dataclass(frozen=True)
class _Work:
    """What a process needs to measure a cell."""

    study: DebiasStudy
    real: RealSet
    out: Path


def measure_apart(
    study: DebiasStudy,
    real: RealSet,
    out: Path,
    missing: Mapping[Path, Cell],
    workers: int | str,
    ended: Callable[[Path], None],
) -> None:
    """Measure the cells whose records are missing, one torch thread each; `ended` is told each record's file.

    Raises:
        UnitsFailed: some failed; the others are kept.
    """

    def on_done(done: Done) -> None:
        if done.failure is None:
            ended(done.unit.target)

    with shared(real, out) as handed:
        packed = pickle.dumps(_Work(study, handed, out))
        last: dict[Any, Path] = {}
        units = []
        for path, cell in missing.items():
            needs = {last[key] for key in _held(study, real, cell) if key in last}
            last |= dict.fromkeys(_held(study, real, cell), path)
            units.append(Unit(path.stem, (packed, cell), path, needs=tuple(sorted(needs))))
        run_units(measure, units, workers=workers, on_done=on_done)


def measure(packed: bytes, cell: Cell, target: Path) -> None:
    """Make the set of a cell, if it is not there, and score it; a unit of `launch`."""
    work = _unpacked(packed)
    write_sealed(target, work.study.measure(cell, work.real, work.out, silent, ()))


def _held(study: DebiasStudy, real: RealSet, cell: Cell) -> list[Any]:
    """What two cells may not work on at once: one set, and what several sets of a method are prepared with."""
    found: list[Any] = [study.set_folder(cell, real)]
    settings: dict[str, Any] = {"ipc": cell.ipc, "network": study.network, "runtime": Runtime.of(study.device)}
    job = prepare_job(get_method(cell.method).cls, real, recipe=study.recipe, **settings, **cell.values)
    return [*found, *((unit.name, cell.seed) for unit in job.own_plan.prepare)]


@lru_cache(maxsize=1)
def _unpacked(data: bytes) -> _Work:
    work: _Work = pickle.loads(data)
    return work
