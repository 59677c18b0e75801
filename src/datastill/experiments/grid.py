"""The cells of a comparison, and `plan.json`: what was asked for and settled, read back when it goes on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from datastill.core.errors import InputError
from datastill.distillation.budget import within
from datastill.distillation.code import code_since
from datastill.distillation.job import Job
from datastill.distillation.remarks import hyper_of
from datastill.experiments.cells import Cell, Settled, Work, job_of, named, prepare, prepared_units, run_cell
from datastill.experiments.rates import choose_rate, may_come_without
from datastill.experiments.records import PlanRecord
from datastill.experiments.robust import measure_whole
from datastill.experiments.settings import Settings
from datastill.experiments.sources import RealSets
from datastill.launch import Unit
from datastill.store.checkpoint import refuse_other
from datastill.store.files import read_json, refuse_changed, write_sealed

FORMAT = "datastill-comparison-plan"
PLAN = "plan.json"


def lay_out(settings: Settings, reals: RealSets, out: Path) -> tuple[Work, list[Cell]]:
    """Settle every method on every data set and size, and name the cells; seeds are the outermost loop.

    With `plan.json` there, its hyper-parameters are taken: a budget is measured once.

    Raises:
        InputError: something asked for cannot be used, or `out` holds another comparison.
    """
    config = settings.config(reals)
    stored = _stored(config, out)
    groups = [
        Cell(data, method, ipc, settings.seeds[0])
        for data, ipc, method in itertools.product(reals.labels(), settings.ipc, settings.methods)
    ]
    settled: dict[str, Settled] = {}
    work = Work(out, reals, settings, settled, settings.command(reals))
    for cell in groups:
        kept = (stored or {}).get("settled", {}).get(cell.group)
        if kept:
            settled[cell.group] = Settled(kept["hyper"], tuple(kept["notes"]))
        else:
            job, settled[cell.group] = _settle(settings, reals, cell, out)
            work.keep(job, cell)
    unnamed = [replace(cell, seed=seed) for seed in settings.seeds for cell in groups]
    cells = [named(cell, work.job(cell), settings) for cell in unnamed]
    if stored is None:
        write_sealed(out / PLAN, _record(config, work, cells))
    return work, cells


def refusals(settings: Settings, reals: RealSets, out: Path) -> dict[str, str]:
    """Methods that cannot do what is asked for, and why; nothing is measured, trained or written."""
    found: dict[str, str] = {}
    for data, ipc, method in itertools.product(reals.labels(), settings.ipc, settings.methods):
        try:
            _planned(settings, reals, Cell(data, method, ipc, settings.seeds[0]), out)
        except InputError as error:
            found.setdefault(method, str(error))
    return found


def units_of(work: Work, cells: list[Cell]) -> list[Unit]:
    """Every file that cells share, once, and after these the cells."""
    shared: dict[Path, Unit] = {}
    units = []
    for cell in cells:
        target, needs = work.result(cell), []
        job = None if target.is_file() else work.job(cell)
        for path in prepared_units(job) if job else ():
            kind = path.name.rsplit("-", 1)[0]
            name = f"{cell.data}, {kind}, seed {cell.seed}"
            shared.setdefault(path, Unit(name, (prepare, work, cell), path, f"{cell.data}, {kind}"))
            needs.append(path)
        if job and may_come_without(job, work.settings):
            path, random = work.rate(cell), replace(cell, method="random", name="")
            name = f"{cell.data}, learning rate, ipc {cell.ipc}"
            shared.setdefault(path, Unit(name, (choose_rate, work, random), path, name))
            needs.append(path)
        if job and work.settings.scores != "none":
            path, name = work.whole(cell), f"{cell.data}, whole real set"
            shared.setdefault(path, Unit(name, (measure_whole, work, cell), path, name))
            needs.append(path)
        units.append(Unit(cell.title, (run_cell, work, cell), target, cell.group, tuple(needs)))
    return [*shared.values(), *units]


def _stored(config: dict[str, Any], out: Path) -> dict[str, Any] | None:
    if not (out / PLAN).is_file():
        return None
    stored = read_json(out / PLAN)
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise InputError(f"{out / PLAN} is not the plan of a comparison; choose another --out.")
    PlanRecord.of(stored, out / PLAN)
    refuse_other(config, stored["config"], out / PLAN)
    code_since(stored["config"].get("code", {}), config.get("code", {}), "the comparison began")
    refuse_changed(out / PLAN, stored)
    return stored


def _planned(settings: Settings, reals: RealSets, cell: Cell, out: Path) -> Job:
    """A cell's job, whose plan can be built, and whose labels the protocol takes."""
    job = job_of(settings, reals, cell, out)
    settings.protocol.check_takes(job.own_plan.labels.kind, job.method_name)
    return job


def _settle(settings: Settings, reals: RealSets, cell: Cell, out: Path) -> tuple[Job, Settled]:
    """A cell's job, and the method's values at its data set and size; a budget becomes a number of steps."""
    job = _planned(settings, reals, cell, out)
    scaled = job if settings.budget is None else within(job, settings.budget, None, False)
    return job, Settled(hyper_of(scaled.method), tuple(scaled.notes))


def _record(config: dict[str, Any], work: Work, cells: list[Cell]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": 1,
        "config": config,
        "command": work.command,
        "settled": {group: {"hyper": s.hyper, "notes": list(s.notes)} for group, s in work.settled.items()},
        "cells": [{"data": c.data, "method": c.method, "ipc": c.ipc, "seed": c.seed, "name": c.name} for c in cells],
    }
