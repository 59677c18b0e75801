"""`compare`: methods x sizes x seeds x data sets, under one protocol, with Random beside each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datastill.core.allocator import keep_freed_memory
from datastill.core.errors import InputError, Interrupted
from datastill.core.ranges import Few, Processes, Seconds, checked
from datastill.data.places import places_of
from datastill.distillation.budget import seconds_of
from datastill.evaluation.protocols import Protocol
from datastill.experiments.cells import Cell, perform, readable
from datastill.experiments.grid import lay_out, units_of
from datastill.experiments.result import Comparison, load_comparison
from datastill.experiments.settings import Settings, make_settings
from datastill.experiments.sources import RealSets, real_sets
from datastill.launch import (
    Done,
    Failure,
    UnitsFailed,
    Workers,
    check_workers,
    one_thread,
    refuse_inside_worker,
    run_units,
)
from datastill.store.artifact import MANIFEST
from datastill.store.files import write_text
from datastill.store.folders import held
from datastill.store.outputs import COMPARISON, refuse_out

ERRORS = "errors"

#: Told what has ended, and how far all is.
Progress = Callable[[Done], object]
#: Told of all cells, once nothing is left that could be refused.
Started = Callable[[Sequence[Cell]], object]


def silent(done: Done) -> None:
    """No progress."""


def unannounced(cells: Sequence[Cell]) -> None:
    """Nothing is said of what is to come."""


class CellsFailed(UnitsFailed):
    """Some cells failed; `comparison` holds the others."""

    def __init__(self, failures: list[Failure], total: int, comparison: Comparison) -> None:
        super().__init__(failures, total)
        self.comparison = comparison


@checked
def compare(
    methods: Sequence[str] | str,
    real: Any,
    *,
    ipc: int | Iterable[int],
    seeds: int | Iterable[int] = 3,
    network: Any = None,
    protocol: str | Protocol = "auto",
    networks: Few = 3,
    recipe: str = "auto",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    budget: Seconds | str | None = None,
    out: str | Path | None = None,
    workers: Processes = 1,
    device: str = "auto",
    precision: str = "float32",
    compile: str = "auto",
    optimizer: str = "auto",
    scores: str = "none",
    progress: Progress = silent,
    started: Started = unannounced,
    **changes: str,
) -> Comparison:
    """Distill with every method at every size from every seed, and score all under one protocol.

    Random is always among the methods. Methods of one data set, size and seed share the evaluation networks'
    weights and orders with the Random of that seed, so differences to it are paired. A cell that is finished
    is not run again: the same call goes on where an earlier one was stopped or killed. Every cell runs with
    one torch thread, so that numbers do not depend on `workers`.

    Args:
        methods: names (`datastill.methods()` lists them) or files of your own.
        real: the real set, as `load_real` takes it; or a list of names, paths or RealSets.
        ipc: images per class, one number or several.
        seeds: how many (0, 1, ...), or which.
        network: architecture to distill with and to evaluate on; None takes a ConvNet that fits.
        protocol: one for all; "auto" is dsa-quick-v1 where any images have at least 16 pixels a side, else dc-v1.
        networks: fresh networks per distilled set.
        recipe: "auto" scales each method to about two minutes of a laptop, "paper" takes its published setting.
        settings: hyper-parameters over the recipe's, by method: {"dm": {"steps": 60}}.
        budget: seconds of distillation, or a time such as "5m", which become a number of steps once per method, data
            set and size, by a measurement at the start; a method whose steps are given is refused.
        out: a folder for cells, results and tables; None keeps nothing on disk.
        workers: processes to run cells in; "ray" or "ray:4": those of a Ray cluster.
        device: "auto", "cpu", "cuda", "mps".
        precision: of the networks' arithmetic: "float32", or "bf16" where the processor is fast at it.
        compile: "on", "off" or "auto": compiled code, where a cell's distillation or its scoring is long enough.
        optimizer: "sgd", "adam" or "adamw", at its usual rate and decay, in the place of the protocol's, for Random as
            well; "auto" is the protocol's.
        scores: "fractions" or "released" gives LRS and ARS with their parts too, see `evaluate_robustness`: networks
            are trained on the whole real set, on hard labels, and with and without augmentation. "none" does not.
        progress: told after every unit.
        started: told of all cells before the first is run, and after all that could be refused.
        **changes: what runs of all methods but Random change, as `distill` takes it: debias="kde", surrogates="dfa".

    Raises:
        InputError: something given cannot be used, or `out` holds another comparison.
        Interrupted: Ctrl-C; what was finished is kept in `out`.
        CellsFailed: some cells failed; the others were done, and are in its `comparison`.
    """
    keep_freed_memory()
    check_workers(workers)
    if out is not None:
        refuse_comparison(Path(out), real)
    reals = real_sets(real)
    asked = make_settings(
        methods, reals, ipc=ipc, seeds=seeds, network=network, protocol=protocol, networks=networks,
        recipe=recipe, settings=settings, budget=seconds_of(budget), device=device, precision=precision,
        compile=compile, optimizer=optimizer, scores=scores, changes=changes,
    )  # fmt: skip
    if Workers.of(workers).several:
        refuse_inside_worker()  # before the folder is held, which the process that started this one does
        if not (network is None or isinstance(network, str)):
            raise InputError("Workers build the network by its name; give network= as a name, or workers=1.")
        reals.check_references()
    if out is not None:
        return _compare(asked, reals, Path(out), workers, progress, started)
    try:
        with tempfile.TemporaryDirectory(prefix="datastill-compare-") as folder:
            return _compare(asked, reals, Path(folder), workers, progress, started)
    except Interrupted as stop:
        raise Interrupted("Stopped; nothing is kept, since no folder was given (out=...).") from stop


def refuse_comparison(out: Path, real: Any) -> None:
    """Refuse a folder that a comparison on these real sets cannot go into; makes nothing."""
    if (out / MANIFEST).is_file():
        raise InputError(f"{out} holds a distilled set; choose another --out for the comparison.")
    sources = real if isinstance(real, list) else [real]
    refuse_out(out, [place for source in sources for place in places_of(source)], COMPARISON)


def _compare(
    asked: Settings, reals: RealSets, out: Path, workers: int | str, progress: Progress, started: Started
) -> Comparison:
    with held(out):
        return _compare_in(asked, reals, out, workers, progress, started)


def _compare_in(
    asked: Settings, reals: RealSets, out: Path, workers: int | str, progress: Progress, started: Started
) -> Comparison:
    with one_thread():
        work, cells = lay_out(asked, reals, out)
        units = units_of(work, cells)
    started(cells)
    failures: list[Failure] = []
    try:
        run_units(perform, units, workers=workers, on_done=progress)
    except UnitsFailed as error:
        failures = error.failures
    comparison = load_comparison(out)
    comparison.save()
    if failures:
        for failure in failures:
            if failure.traceback:
                write_text(out / ERRORS / f"{readable(failure.name)}.txt", f"{failure}\n\n{failure.traceback}")
        raise CellsFailed(failures, len(units), comparison)
    return comparison
