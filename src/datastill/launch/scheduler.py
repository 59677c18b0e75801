"""`run_units`: the units whose files are missing, in this process or over a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datastill.core.allocator import keep_freed_memory
from datastill.core.errors import Interrupted
from datastill.launch.pool import run_pool
from datastill.launch.ray_pool import run_ray
from datastill.launch.units import Clock, Done, Failure, Function, Unit, UnitsFailed, attempt, one_thread, without_needs
from datastill.launch.workers import Workers

OnDone = Callable[[Done], Any]


def run_units(
    function: Function, units: Sequence[Unit], *, workers: int | str = 1, on_done: OnDone | None = None
) -> None:
    """Map a pure function over the units that are not finished.

    A unit is finished when its file is there, so a run that was stopped or killed goes on where it was when
    it is called again. Every unit runs with one torch thread, here and in a worker, so results do not depend
    on `workers`; more than one worker is what uses more than one core.

    Args:
        function: called as `function(*unit.arguments, unit.target)`; importable by name where workers > 1.
        units: those of one target are one unit; a unit stands after those whose files it needs.
        workers: 1 runs in this process; more run in processes that know nothing of this one; "ray", or "ray:4" for
            four at once, in those of a Ray cluster, whose machines share the folders of the files.
        on_done: told after every unit.

    Raises:
        InputError: workers names none; or Ray is missing, does not start, or has workers of another version.
        Interrupted: Ctrl-C; what was finished is kept.
        UnitsFailed: some failed, or lost their worker; the others were done all the same.
        WorkersLost: workers die as they begin.
    """
    asked = Workers.of(workers)
    distinct = list({unit.target: unit for unit in units}.values())
    missing = [unit for unit in distinct if not unit.finished]
    clock = Clock(missing, asked.likely)
    done = len(distinct) - len(missing)
    failures: list[Failure] = []

    def ended(unit: Unit, failure: Failure | None, seconds: float) -> None:
        nonlocal done
        done += 1
        if failure is not None:
            failures.append(failure)
        left = clock.ended(unit, seconds)
        if on_done is not None:
            on_done(Done(unit, failure, seconds, done, len(distinct), left))

    try:
        if not asked.go_apart(len(missing)):
            _run_here(function, missing, ended)
        elif asked.ray:
            run_ray(function, missing, asked, ended)
        else:
            run_pool(function, missing, min(asked.count, len(missing)), ended)
    except (KeyboardInterrupt, Interrupted) as stop:
        raise Interrupted(
            f"Stopped: {done - len(failures)} of {len(distinct)} units are finished and kept; "
            "rerun the same command to go on."
        ) from stop
    if failures:
        raise UnitsFailed(failures, len(distinct))


def _run_here(function: Function, units: Sequence[Unit], ended: Callable[[Unit, Failure | None, float], None]) -> None:
    keep_freed_memory()
    with one_thread():
        for unit in units:
            ended(unit, *(attempt(function, unit) if unit.ready else (without_needs(unit), 0.0)))
